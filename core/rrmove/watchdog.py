"""A watch over the event loop: a transport that blocks it, instead of awaiting, is interrupted."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType

# A real-time signal that nobody else uses: glibc keeps the first two, and asyncio and pytest-timeout
# use others. It interrupts system calls as well, which an exception set from a thread would not.
SIGNAL = signal.SIGRTMIN + 5 if hasattr(signal, "SIGRTMIN") else None

AT_WORK: ContextVar[str] = ContextVar("AT_WORK")  # the transport that a task, and what it starts, belong to


class Blocked(Exception):  # noqa: N818  named after what is so
    """A transport has blocked the event loop; raised in its own frame."""


class Watchdog:
    """Raise Blocked in the task that keeps the loop from turning for `patience` seconds.

    A context manager, to be entered in the loop. It works where the loop runs in the main thread,
    as Python gives signals to that one only; elsewhere, and where somebody else has taken the signal, it
    does nothing: who embeds rrmove in a thread has to trust the transports not to block. Of several at work
    at the same time each one watches, and the transport that is named is the one that was interrupted.
    """

    def __init__(self, patience: float, name: str) -> None:
        self._patience, self._name = patience, name
        self._beat = time.monotonic()
        self._over = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """Begin to watch."""
        main = threading.current_thread() is threading.main_thread()
        free = {signal.SIG_DFL, signal.SIG_IGN}
        self._armed = main and SIGNAL is not None and (bool(_WATCHING) or signal.getsignal(SIGNAL) in free)
        if self._armed and SIGNAL is not None:
            _WATCHING.append(self)
            signal.signal(SIGNAL, _bite)
            self._turn()
            threading.Thread(target=self._watch, args=(threading.get_ident(),), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        self._over.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._armed:
            _WATCHING.remove(self)
        if self._armed and not _WATCHING and SIGNAL is not None:
            # Never the default, which ends the process: a last one may be on its way.
            signal.signal(SIGNAL, signal.SIG_IGN)

    def _turn(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(self._patience / 4, self._turn)

    def late(self) -> bool:
        """Tell whether the loop has not turned for too long."""
        return time.monotonic() - self._beat > self._patience

    def _watch(self, thread: int) -> None:
        while not self._over.wait(self._patience / 4):
            if self.late() and SIGNAL is not None:
                signal.pthread_kill(thread, SIGNAL)

    def bite(self) -> None:
        """Raise Blocked; the next one is as patient again."""
        self._beat = time.monotonic()
        name = AT_WORK.get(self._name)
        raise Blocked(f"{name} blocked the event loop for {self._patience:g} s instead of awaiting")

    def in_task(self) -> bool:
        """Tell whether a task of the loop is running: the loop itself has to stay as it is."""
        return asyncio.current_task(self._loop) is not None


_WATCHING: list[Watchdog] = []


def _bite(_number: int, _frame: FrameType | None) -> None:
    # Only in a task, and only while it is still so.
    for dog in _WATCHING:
        if dog.late() and dog.in_task():
            dog.bite()
