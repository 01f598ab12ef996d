"""Running a coroutine until it ends, or until the user does: Ctrl-C, SIGTERM, a closed terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rrmove.cli.text import say

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType

T = TypeVar("T")

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
PATIENCE = 2.0  # seconds for which stopping needs no word
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(main: Coroutine[Any, Any, T], *, tidy: Callable[[], None] = lambda: None) -> T:
    """Run `main` to its end; the first signal cancels it, the second ends the process at once.

    Raises KeyboardInterrupt when a signal ended it. `tidy` leaves the terminal as it was; it is
    called before anything is said here.
    """
    stop = _Stop(tidy)
    # Outside the runner, whose end may take a while: it waits for threads that hash or connect.
    with stop.listening(), asyncio.Runner() as runner:
        try:
            try:
                return runner.run(stop.watch(main))
            except SystemExit as end:
                return cast("T", stop.turn_on(runner, end))
        except asyncio.CancelledError:
            if stop.asked:
                raise KeyboardInterrupt from None
            raise


class _Stop:
    """What signals do while a coroutine runs."""

    def __init__(self, tidy: Callable[[], None]) -> None:
        self.asked = False
        self._tidy = tidy
        self._task: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def watch(self, main: Coroutine[Any, Any, T]) -> T:
        self._task, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        if self.asked:
            main.close()
            raise asyncio.CancelledError
        return await main

    def turn_on(self, runner: asyncio.Runner, end: SystemExit) -> Any:
        """Go on after some task of a plugin wanted to end the program."""
        from rrmove.containment import turn_on

        if self._task is None:
            raise end
        return turn_on(runner.get_loop(), self._task, end)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals, but for those that are ignored: `nohup` and `&` mean it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A handler set with the loop's own add_signal_handler would wait for a loop that is busy.
        before = {number: signal.getsignal(number) for number in SIGNALS}
        ours = [number for number, was in before.items() if was is not signal.SIG_IGN]
        for number in ours:
            signal.signal(number, self._signalled)
        try:
            yield
        finally:
            for number in ours:
                signal.signal(number, before[number])

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            self._tidy()
            say("rrmove: ended at once; the same command goes on from what is on the node")
            os._exit(INTERRUPTED)
        self.asked = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and self._loop is not None:
            self._task.cancel()
            self._loop.call_later(PATIENCE, self._hint)

    def _hint(self) -> None:
        self._tidy()
        say("rrmove: stopping; Ctrl-C again ends at once")
