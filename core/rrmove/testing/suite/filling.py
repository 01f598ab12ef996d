"""Filling: what a transport puts into the part file where nothing goes wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rrmove.errors import RRMoveError
from rrmove.testing.suite.measures import GRAIN, SIZE
from rrmove.testing.verdict import earned, fail, run, said

if TYPE_CHECKING:
    from rrmove.testing.bench import Bench

ODD = "-odd 'name' \"$(touch oops)\" *?;&|<>#\\`\n\té:1.bin"
NOT_TEXT = b"not-utf8-\xff\xfe.bin"


class Filling:
    """Checks of what arrives."""

    def test_files_of_all_sizes_arrive(self, bench: Bench) -> None:
        """Empty, one byte, and around the edge of a chunk."""

        async def each() -> None:
            for size in (0, 1, GRAIN - 1, GRAIN, GRAIN + 1):
                source = bench.source(size, f"{size}.bin")
                result = await bench.attempt(source)
                earned(bench, result, f"a file of {size} bytes")
                if not result.returned:
                    fail(bench.transport, f"a file of {size} bytes failed on a good link: {said(result)}")

        run(each())

    def test_odd_names_arrive(self, bench: Bench) -> None:
        """Quotes, spaces, line ends, a leading dash, a colon, what is no UTF-8; nothing runs in a shell."""
        names: list[str] = [ODD, os.fsdecode(NOT_TEXT)]

        async def each() -> None:
            for name in names:
                source = bench.source(70_001, name)
                await self._arrives(bench, source, "odd dir 'x' $(touch oops)/", f"the name {name!r}")

        run(each())
        made_there = {path.name for path in bench.node.home.rglob("*")} - {*names, "odd dir 'x' $(touch oops)"}
        if made_there or Path("oops").exists():
            fail(
                bench.transport,
                f"odd names made {sorted(made_there) or 'oops'} appear: something in them was run or split by a "
                "shell. Pass names as one argument, quoted with shlex.quote() where a shell reads them",
            )

    def test_a_directory_that_is_missing_is_no_obstacle(self, bench: Bench) -> None:
        """The core makes directories; the transport writes to `job.landing.part`, wherever that is."""
        run(self._arrives(bench, bench.source(5), "new/deep/", "a directory that was not there"))

    def test_a_repeat_does_no_harm(self, bench: Bench) -> None:
        """Sending again what is there, all of it or nothing, leaves it as it was."""

        async def twice() -> None:
            source = bench.source(SIZE)
            async with bench.trial(source) as trial:
                missing = await trial.open()
                for again, what in ((missing, "the first"), (missing, "a repeat"), ((), "a send of nothing")):
                    result = await trial.send(again)
                    if result.error is not None:
                        fail(bench.transport, f"{what} failed on a good link: {said(result)}")
                    if bench.matching(result.part, source) != SIZE:
                        fail(bench.transport, f"{what} left other bytes than the source's. A repeat has to continue")

        run(twice())

    def test_it_fills_the_holes(self, bench: Bench) -> None:
        """What is missing in the middle is put there, and what was there stays."""

        async def holes() -> None:
            source = bench.source(3 * GRAIN)
            async with bench.trial(source) as trial:
                await trial.open()
                missing = await trial.hold(0, 2)
                result = await trial.send(missing)
                if result.returned and bench.matching(result.part, source) != 3 * GRAIN:
                    fail(
                        bench.transport,
                        "a chunk was missing in the middle, and it returned without it. Send every range of "
                        "job.missing, at its own offset",
                    )

        run(holes())

    async def _arrives(self, bench: Bench, source: Path, destination: str, what: str) -> None:
        try:
            outcome = await bench.move(source, destination)
        except RRMoveError as error:
            fail(bench.transport, f"{what}: it failed on a good link: {error}")
        if not bench.is_whole(Path(outcome.destination or ""), source):
            fail(bench.transport, f"{what}: what is on the disk is not the source")
