"""The verdict of the suite: what a result means, and the words in which an author is told what to mend."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from rrmove.containment import run_to_end
from rrmove.errors import IntegrityError, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from rrmove.probe import Facts
    from rrmove.testing.bench import Bench, Result
    from rrmove.transport import Transport

QUICK = 5.0  # s that refuse() has; it is to look at what it is given, and at nothing else
MARK = "RRMOVE_SUITE"


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine as a program would, whatever the plugin's tasks are up to."""
    return run_to_end(work)


def mark() -> str:
    """Give what all processes have in their environment that this test has started."""
    return f"{MARK}={os.environ[MARK]}"


def fail(transport: object, words: str) -> NoReturn:
    """Fail the test with words alone: a traceback through the suite tells an author nothing."""
    pytest.fail(f"{getattr(transport, 'name', transport)}: {words}", pytrace=False)


def said(result: Result) -> str:
    """Say why an attempt failed."""
    return str(result.error or "it returned, but not all of it is on the disk")


def refusal(transport: Transport, request: Any, facts: Facts) -> object:
    """Ask refuse(), in a thread, as it may never come back."""
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(transport.refuse(request, facts))
        except BaseException as error:  # noqa: BLE001  whatever it is, it is told
            answers.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(QUICK)
    if not answers:
        fail(transport, f"refuse() took longer than {QUICK:g} s. It is to look at its arguments alone: no I/O")
    if isinstance(answers[0], BaseException):
        error = answers[0]
        fail(transport, f"refuse() raised {type(error).__name__}: {error}. A fact may be None: look before you use it")
    if inspect.iscoroutine(answers[0]):
        fail(transport, "refuse() is a coroutine. It has to be a plain method")
    return answers[0]


def only_transport_errors(bench: Bench, result: Result, what: str) -> None:
    """Fail where something else than a TransportError came out of send(), or nothing at all."""
    raised, name = result.raised, bench.transport.name
    if (raised is None and result.error is None) or (result.cancelled and isinstance(raised, asyncio.CancelledError)):
        return
    if isinstance(raised, SystemExit):
        fail(bench.transport, f"{what}: it called sys.exit(). Raise a TransportError instead")
    if isinstance(raised, asyncio.CancelledError) and not result.cancelled:
        said = str(result.error)
        if "moved nothing" in said:
            fail(
                bench.transport,
                f"{what}: it neither ended nor reported a byte for {bench.patience:g} s. Give what you wait for a "
                "timeout, and raise Transient when it passes",
            )
        fail(bench.transport, f"{what}: it raised CancelledError, though nobody cancelled it. Raise Transient")
    if type(raised).__name__ == "Blocked":
        fail(
            bench.transport,
            f"{what}: it blocked the event loop for {bench.patience:g} s. Await what takes time "
            "(asyncio.create_subprocess_exec, asyncio.to_thread)",
        )
    if raised is None:
        fail(bench.transport, f"{what}: {result.error}. It did not even stop when it was cancelled")
    if not isinstance(raised, TransportError | IntegrityError):
        fail(
            bench.transport,
            f"{what}: {type(raised).__name__} escaped from send(): {raised}. Catch it there, and raise Transient "
            f"(try {name} again), Unusable (the next transport) or Fatal (none helps)",
        )


def earned(bench: Bench, result: Result, what: str) -> None:
    """Fail where it claims a success that the disk does not show, or where something else than its errors escapes."""
    only_transport_errors(bench, result, what)
    if result.returned and not result.whole:
        fail(
            bench.transport,
            f"{what}: it returned, and the part file is not the source ({result.missing} bytes are missing). To "
            "return means that all bytes are there: check the exit status, await the end, or raise Transient",
        )


@contextlib.contextmanager
def printed_by() -> Iterator[Callable[[], str]]:
    """Collect what is printed to stdout, by Python and by whoever has the descriptor."""
    with tempfile.TemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:  # noqa: S108
        saved = os.dup(1)
        python = tempfile.SpooledTemporaryFile(mode="w+", max_size=1 << 20)  # noqa: SIM115  closed below
        os.dup2(file.fileno(), 1)
        said: list[str] = []
        try:
            with contextlib.redirect_stdout(python):
                yield lambda: said[0]
        finally:
            sys.stdout.flush()
            os.dup2(saved, 1)
            os.close(saved)
            file.seek(0)
            python.seek(0)
            said.append(python.read() + file.read(4096).decode("utf-8", "replace"))
            python.close()
