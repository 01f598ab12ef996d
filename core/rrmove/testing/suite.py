"""The suite of the contract: what every transport has to show, by what is found on the node's disk.

    from rrmove.testing import TransportSuite

    class TestMine(TransportSuite):
        @pytest.fixture
        def transport(self):
            return Mine()

It needs no root and takes less than a minute. What a transport does not claim to be able to do
(`capabilities`) is not asked of it. A failure says what to mend.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from rrmove.errors import IntegrityError, RRMoveError, TransportError
from rrmove.fitness import made
from rrmove.probe import Facts
from rrmove.testing.bench import Bench, Result
from rrmove.testing.faults import Faults
from rrmove.testing.outside import files, marked, ports, until
from rrmove.testing.verdict import MARK, earned, fail, mark, only_transport_errors, printed_by, refusal, run, said

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rrmove.testing.bench import Trial
    from rrmove.testing.node import EmbeddedNode
    from rrmove.transport import Transport

MB = 1_000_000
GRAIN = 2 << 20  # bytes of a chunk, for files as small as these
SIZE = 3 * MB + 1  # a chunk and a half
RATE = 6e6  # bytes a second: slow enough to be caught in the middle, and half a second for SIZE
LINK = Faults(rate=8e6)
STOPPING = 8.0  # s that a transport has to end in when it is cancelled; the core waits 10
SLACK = 64 << 10  # bytes by which a claim of progress may be off: a write that is not yet counted
ODD = "-odd 'name' \"$(touch oops)\" *?;&|<>#\\`\n\té:1.bin"
NOT_TEXT = b"not-utf8-\xff\xfe.bin"


_serving: set[str] = set()  # transports that do not refuse on this machine: asked once, as it takes a login


class TransportSuite:
    """The contract as tests. Join by subclassing, with a fixture `transport` that gives yours.

    `settings` are what the transport is told (`{"mine.port": 0}`); `patience` is how many seconds
    it may go without a byte before it counts as hanging.
    """

    settings: ClassVar[Mapping[str, object]] = {}
    patience: ClassVar[float] = 10.0

    @pytest.fixture
    def transport(self) -> Transport:
        """Give the transport under test; subclasses have to say which."""
        raise NotImplementedError("give your test class a fixture `transport` that returns your transport")

    @pytest.fixture
    def bench(
        self, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rrmove_node: EmbeddedNode
    ) -> Bench:
        """Put the transport on a bench: a node, and a home and a temporary directory of their own."""
        for name in ("state", "tmp", "sources"):
            (tmp_path / name).mkdir()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv(MARK, str(tmp_path))
        bench = Bench(
            transport, rrmove_node, tmp_path / "sources", settings=self.settings, patience=self.patience
        )  # fmt: skip
        if transport.name not in _serving:
            self._serves(bench)
            _serving.add(transport.name)
        return bench

    # What it is

    def test_it_is_fit_to_be_loaded(self, transport: Transport) -> None:
        """Its attributes are what the core expects of a transport."""
        _, problem = made(transport)
        if problem is not None:
            fail(transport, f"{problem}. See docs/transports.md for what it has to be")

    def test_its_distribution_is_fit_to_be_loaded(self, transport: Transport) -> None:
        """Where it is installed, a new process finds it, in time, and under a name that nobody else has."""
        argv = [sys.executable, "-m", "rrmove", "plugins", "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        rows = [row for row in map(json.loads, done.stdout.splitlines()) if row["name"] == transport.name]
        if not rows:
            pytest.skip(f"no installed distribution registers {transport.name}")
        row = rows[0]
        if row["problem"]:
            fail(transport, f"as installed, {row['problem']}. {row['remedy']}")
        if row["remedy"]:
            fail(transport, f"{row['remedy']}")

    def test_it_refuses_nothing_for_want_of_facts(self, bench: Bench) -> None:
        """With everything unknown it answers None, twice the same, and at once."""
        transport, request = bench.transport, bench.request(bench.source(1))
        first, second = (refusal(transport, request, Facts()) for _ in range(2))
        if first is not None and not isinstance(first, str):
            fail(transport, f"refuse() answered {first!r}. Let it give a reason as a str, or None")
        if first != second:
            fail(transport, f"refuse() answered {first!r}, then {second!r}. Let it depend on its arguments alone")
        if first is not None:
            fail(
                transport,
                f"refuse() says {first!r} where nothing is known of the node, and nothing against it where all "
                "is. A fact that is None is unknown: refuse only for what is known",
            )

    # What it fills

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
                part = bench.node.home / trial.landing.part
                filled = bytearray(source.read_bytes())
                filled[GRAIN : 2 * GRAIN] = bytes(GRAIN)
                part.write_bytes(filled)
                # Who compares sizes and times, as rsync does, would think that they are the same file.
                os.utime(part, ns=(source.stat().st_mtime_ns,) * 2)
                missing = await trial.landing.survey(everything=True)
                result = await trial.send(missing)
                if result.returned and bench.matching(part, source) != 3 * GRAIN:
                    fail(
                        bench.transport,
                        "a chunk was missing in the middle, and it returned without it. Send every range of "
                        "job.missing, at its own offset",
                    )

        run(holes())

    # What it survives

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
        if not bench.node.resets:
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

    # What it leaves

    @pytest.mark.parametrize("at", [0, MB], ids=["at once", "midway"])
    def test_cancelled_it_leaves_nothing(self, bench: Bench, tmp_path: Path, at: int) -> None:
        """No process, port, task or temporary, on either side; and it ends soon."""
        folders = (tmp_path / "tmp", tmp_path / "sources", bench.node.temporary)
        transport = bench.transport

        async def cancelled() -> None:
            source = bench.source(SIZE)
            async with bench.trial(source) as trial:
                missing = await trial.open()
                before = (files(folders), ports(), set(marked(mark())), set(bench.node.processes()))
                tasks = asyncio.all_tasks()
                result = await trial.send(missing, rate=RATE, at=at, cancel=True)
                if not result.cancelled:
                    fail(transport, f"it was done before {at} bytes were seen on their way: {said(result)}")
                if result.stopping > STOPPING:
                    fail(
                        transport,
                        f"it took {result.stopping:.1f} s to stop when it was cancelled. Let CancelledError "
                        "through, and kill in `finally` what you have started",
                    )
                await asyncio.sleep(0)
                self._left(bench, before, folders)
                if strays := {task.get_coro().__qualname__ for task in asyncio.all_tasks() - tasks}:  # type: ignore[union-attr]
                    fail(transport, f"cancelled, it left tasks: {', '.join(strays)}. Await them, as a TaskGroup does")

        run(cancelled())

    def test_done_it_leaves_nothing(self, bench: Bench, tmp_path: Path) -> None:
        """After a success, too: no process, port or temporary, nothing on stdout; and the limit was kept."""
        folders = (tmp_path / "tmp", tmp_path / "sources", bench.node.temporary)
        transport = bench.transport

        async def sent() -> tuple[Result, str]:
            source = bench.source(SIZE)
            async with bench.trial(source) as trial:
                missing = await trial.open()
                before = (files(folders), ports(), set(marked(mark())), set(bench.node.processes()))
                with printed_by() as printed:
                    result = await trial.send(missing, rate=RATE)
                result.whole = bench.matching(result.part, source) == SIZE
                self._left(bench, before, folders)
                return result, printed()

        result, printed = run(sent())
        earned(bench, result, "a good link with a limit")
        if not result.whole:
            fail(transport, f"it failed on a good link: {said(result)}")
        if printed:
            fail(transport, f"it printed {printed[:80]!r} to stdout, which is for results. Print to stderr, or not")
        least = SIZE / RATE / 2
        if result.seconds < least:
            fail(
                transport,
                f"it sent {SIZE} bytes in {result.seconds:.2f} s under a limit of {RATE:.0f} B/s. Await "
                "job.limiter.take(count) before bytes leave, or give job.limiter.rate to the program you run",
            )
        self._told(transport, result)

    def test_any_order_of_cuts_kills_and_retries(self, bench: Bench) -> None:
        """A state machine of faults: whatever was there stays or is sent again, and no success is unearned."""
        gc.collect()  # see the machine: it holds for pytest's own parsing of what is imported, too
        pytest.importorskip("hypothesis")
        from rrmove.testing.machine import survives

        survives(bench, lambda result, what: earned(bench, result, what), lambda words: fail(bench.transport, words))

    # How it is asked

    def _serves(self, bench: Bench) -> None:
        """Skip where the transport says itself that it cannot serve on this machine, now that all is known."""

        async def asked() -> object:
            async with bench.trial(bench.source(1, "probe")) as trial:
                return refusal(bench.transport, trial.request, trial.facts)

        reason = run(asked())
        (bench.folder / "probe").unlink()
        if isinstance(reason, str) and reason:
            pytest.skip(f"{bench.transport.name} refuses to serve here: {reason}")

    async def _arrives(self, bench: Bench, source: Path, destination: str, what: str) -> None:
        try:
            outcome = await bench.move(source, destination)
        except RRMoveError as error:
            fail(bench.transport, f"{what}: it failed on a good link: {error}")
        if not bench.is_whole(Path(outcome.destination or ""), source):
            fail(bench.transport, f"{what}: what is on the disk is not the source")

    def _left(self, bench: Bench, before: tuple[Any, ...], folders: tuple[Path, ...]) -> None:
        """Compare what there is with what there was before it began."""
        had_files, had_ports, had_here, had_there = before
        places: tuple[tuple[str, Callable[[], set[str]], str], ...] = (
            (
                "processes on this machine",
                lambda: {words for pid, words in marked(mark()).items() if pid not in had_here},
                "Kill what you start, in `finally`, and await its end",
            ),
            (
                "processes on the node",
                lambda: {words for pid, words in bench.node.processes().items() if pid not in had_there},
                "Let what runs on the node end with its connection: no nohup, no setsid, no `&`",
            ),
            ("listening ports", lambda: {str(port) for port in ports() - had_ports}, "Close servers in `finally`"),
            (
                "files",
                lambda: {str(path) for path in files(folders) - had_files},
                "Remove temporaries in `finally`, and write on the node to job.landing.part only",
            ),
        )
        for what, look, remedy in places:
            if not until(lambda look=look: not look(), 4.0):  # type: ignore[misc]
                there = ", ".join(sorted(look()))[:300]
                for pid in {*marked(mark()), *bench.node.processes()} - had_here - had_there:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                fail(bench.transport, f"it left {what} behind: {there}. {remedy}")

    def _told(self, transport: Transport, result: Result) -> None:
        """Look at what it reported while it worked."""
        counts = result.progress
        if any(not isinstance(count, int) or count < 0 for count in counts):
            fail(transport, f"it reported progress of {counts}. Call job.progress(count) with bytes, never below zero")
        if sum(counts) > result.before:
            fail(transport, f"it reported {sum(counts)} durable bytes where {result.before} were missing. Count once")
        if not counts:
            fail(
                transport,
                "it never called job.progress(count). Report bytes as the node has written them "
                "(job.landing.held() tells), or it is taken for hanging",
            )
        if result.overclaimed is not None and result.overclaimed[0] - result.overclaimed[1] > SLACK:
            claimed, there = result.overclaimed
            fail(
                transport,
                f"it reported {claimed} bytes as durable when {there} were on the node's disk. Report what the "
                "node has written, not what has been sent",
            )
