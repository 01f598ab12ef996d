"""Surviving: what becomes of the file where links, processes, disks and sources fail."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rrmove.errors import IntegrityError, RRMoveError, TransportError
from rrmove.testing.faults import Faults
from rrmove.testing.suite.measures import GRAIN, LINK, MB, RATE, SIZE
from rrmove.testing.verdict import earned, fail, only_transport_errors, run, said

if TYPE_CHECKING:
    from rrmove.testing.bench import Bench, Result, Trial


class Surviving:
    """Checks of what it does with faults."""

    @pytest.mark.parametrize(
        "cut",
        [
            Faults(reset_after_bytes=300_000, rate=LINK.rate),
            Faults(reset_after_bytes=GRAIN + 600_000, rate=LINK.rate),
            Faults(reset_after_seconds=0.7, rate=2.5e6),
        ],
        ids=["early", "late", "aged"],
    )
    def test_it_goes_on_after_a_cut(self, bench: Bench, cut: Faults) -> None:
        """A connection that is reset costs no success it did not earn; the next attempt completes the file."""

        async def cut_and_again() -> tuple[Result, Result]:
            source = bench.source(SIZE)
            first = await bench.attempt(source, faults=cut)
            return first, await bench.attempt(source)

        first, second = run(cut_and_again())
        if not bench.resets:
            pytest.skip("nothing of it goes over the connection that was cut")
        earned(bench, first, f"a link that was cut ({cut})")
        earned(bench, second, "an attempt after a cut")
        if not second.whole:
            fail(bench.transport, f"the attempt after a cut failed on a good link: {said(second)}")
        capabilities = bench.transport.capabilities
        if capabilities.resume == "exact" and capabilities.route == "ssh":
            # The agent that is sent with each connection is 40 kB; a handful of them is usual.
            most = second.before * capabilities.overhead * 1.1 + 600_000
            if second.received > most:
                fail(
                    bench.transport,
                    f'it claims resume="exact", and sent {second.received} bytes where {second.before} were '
                    "missing. Send only job.missing, or claim less",
                )

    def test_a_link_that_carries_next_to_nothing_is_no_success(self, bench: Bench) -> None:
        """Where every connection dies at once, it raises a TransportError."""
        result = run(bench.attempt(bench.source(SIZE), faults=Faults(reset_after_bytes=120_000)))
        earned(bench, result, "a link on which every connection dies after 120 kB")

    def test_killed_on_the_node(self, bench: Bench) -> None:
        """What works for it on the node is killed in the middle: a TransportError, and the next attempt completes."""

        async def kill(_: Trial) -> None:
            for pid in bench.node.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        async def kill_and_again() -> tuple[Result, Result]:
            source = bench.source(SIZE)
            first = await bench.attempt(source, faults=LINK, rate=RATE, at=MB, during=kill)
            return first, await bench.attempt(source)

        first, second = run(kill_and_again())
        earned(bench, first, "processes on the node that were killed")
        earned(bench, second, "an attempt after a kill")
        if not second.whole:
            fail(bench.transport, f"the attempt after a kill failed on a good link: {said(second)}")

    def test_a_full_disk_is_an_error(self, bench: Bench) -> None:
        """Where the node cannot hold the file, it raises a TransportError, and no success is claimed."""
        source = bench.source(SIZE)
        result = run(bench.attempt(source, faults=Faults(file_bytes=MB)))
        if result.whole:
            pytest.skip("what writes for it on the node is beyond the limit that stands for a full disk")
        earned(bench, result, "a full disk")
        if isinstance(result.error, TransportError) and result.part.stat().st_size > SIZE:
            fail(bench.transport, "it left a part file that is longer than the source")

    def test_the_part_file_is_taken_away(self, bench: Bench) -> None:
        """Somebody removes the directory in the middle: a TransportError or nothing, and never a success."""

        async def remove(trial: Trial) -> None:
            shutil.rmtree(Path(trial.landing.part).parent, ignore_errors=True)

        async def removed() -> None:
            source = bench.source(SIZE)
            async with bench.trial(source, "away/") as trial:
                result = await trial.send(await trial.open(), rate=RATE, at=MB, during=remove)
                only_transport_errors(bench, result, "a part file that was removed")

        run(removed())

    def test_the_source_is_gone(self, bench: Bench) -> None:
        """A source that cannot be read is a TransportError."""

        async def gone() -> None:
            source = bench.source(SIZE)
            async with bench.trial(source) as trial:
                missing = await trial.open()
                source.unlink()
                result = await trial.send(missing)
                only_transport_errors(bench, result, "a source that was removed")
                if result.returned:
                    fail(bench.transport, "the source could not be read, and it returned. Raise Fatal")

        run(gone())

    def test_the_source_changes_midway(self, bench: Bench) -> None:
        """A move whose source is rewritten under its hands commits nothing."""
        source = bench.source(SIZE)
        begun = threading.Event()

        def rewrite(event: object) -> None:
            if type(event).__name__ == "AttemptStarted" and not begun.is_set():
                begun.set()
                source.write_bytes(os.urandom(SIZE))

        error: BaseException | None = None
        try:
            run(bench.move(source, on_event=rewrite))
        except RRMoveError as raised:
            error = raised
        assert begun.is_set(), "the attempt never began"
        if error is None or (bench.node.home / source.name).exists():
            fail(bench.transport, "the source changed while it was sent, and the file was committed")
        if isinstance(error, IntegrityError):
            fail(bench.transport, f"a source that changed was taken for a broken link: {error}")

    def test_any_order_of_cuts_kills_and_retries(self, bench: Bench) -> None:
        """A state machine of faults: whatever was there stays or is sent again, and no success is unearned."""
        gc.collect()  # see the machine: it holds for pytest's own parsing of what is imported, too
        pytest.importorskip("hypothesis")
        from rrmove.testing.machine import survives

        survives(bench, lambda result, what: earned(bench, result, what), lambda words: fail(bench.transport, words))
