"""A watch over the event loop: a transport that blocks it, instead of awaiting, is interrupted."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType

# A real-time signal that nobody else uses: glibc keeps the first two, and asyncio and pytest-timeout
# use others. It interrupts system calls as well, which an exception set from a thread would not.
SIGNAL = signal.SIGRTMIN + 5 if hasattr(signal, "SIGRTMIN") else None


class Blocked(Exception):  # noqa: N818  named after what is so
    """A transport has blocked the event loop; raised in its own frame."""


class Watchdog:
    """Raise Blocked in the task that keeps the loop from turning for `patience` seconds.

    A context manager, to be entered in the loop. It works where the loop runs in the main thread,
    as Python gives signals to that one only; elsewhere, and where another watchdog is at work, it
    does nothing: who embeds rrmove in a thread has to trust the transports not to block.
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
        self._armed = main and SIGNAL is not None and signal.getsignal(SIGNAL) in free
        if self._armed and SIGNAL is not None:
            signal.signal(SIGNAL, self._bite)
            self._turn()
            threading.Thread(target=self._watch, args=(threading.get_ident(),), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        self._over.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._armed and SIGNAL is not None:
            # Never the default, which ends the process: a last one may be on its way.
            signal.signal(SIGNAL, signal.SIG_IGN)

    def _turn(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(self._patience / 4, self._turn)

    def _late(self) -> bool:
        return time.monotonic() - self._beat > self._patience

    def _watch(self, thread: int) -> None:
        while not self._over.wait(self._patience / 4):
            if self._late() and SIGNAL is not None:
                signal.pthread_kill(thread, SIGNAL)

    def _bite(self, _number: int, _frame: FrameType | None) -> None:
        # Only in a task, and only while it is still so: the loop itself has to stay as it is.
        if self._late() and not self._over.is_set() and asyncio.current_task(self._loop) is not None:
            self._beat = time.monotonic()
            raise Blocked(f"{self._name} blocked the event loop for {self._patience:g} s instead of awaiting")
