"""Leaving: what a transport leaves behind, what it prints, and what it reports while it works."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from rrmove.testing.outside import files, marked, ports, until
from rrmove.testing.suite.measures import MB, RATE, SIZE
from rrmove.testing.verdict import earned, fail, mark, printed_by, run, said

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rrmove.testing.bench import Bench, Result
    from rrmove.transport import Transport

STOPPING = 8.0  # s that a transport has to end in when it is cancelled; the core waits 10
SLACK = 64 << 10  # bytes by which a claim of progress may be off: a write that is not yet counted


class Leaving:
    """Checks of what is there afterwards."""

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
