"""Guests: code of strangers, loaded in threads of its own, for a limited time, and kept off our stdout."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TextIO, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")

# Chosen: what is at hand takes 0.1 s to import, and a cold disk ten times that. A move must not
# wait longer for somebody who may not even serve it.
IMPORT_TIME = 3.0  # s


class Guest(Generic[T]):
    """One piece of foreign code at its loading: what came of it, once `done`."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self.done = self.spoke = False
        self.result: T | None = None
        self.error: BaseException | None = None
        self._work = work
        self.thread = threading.Thread(target=self.run, name=f"load-{name}", daemon=True)

    def run(self) -> None:
        """Do the work, here and now."""
        try:
            self.result = self._work()
        except BaseException as error:  # noqa: BLE001 - SystemExit and worse, too: it is a guest
            self.error = error
        self.done = True


_redirecting = threading.RLock()  # sys.stdout is one for all threads: whoever comes second would restore the wrong one

# Who was late is not asked again, and not waited for a second time.
_known: dict[object, Guest[Any]] = {}


def load(works: Mapping[Any, Callable[[], T]], seconds: float = IMPORT_TIME) -> dict[Any, Guest[T]]:
    """Run all of `works` at the same time, and wait for them together, at most `seconds`.

    Raises nothing of theirs. One that is late goes on in its thread; a repeat does not wait for it
    again. What they print goes to stderr meanwhile.
    """
    guests: dict[Any, Guest[T]] = {}
    waiting: list[Guest[T]] = []
    for key, work in works.items():
        late = _known.pop(key, None)
        guests[key] = late or Guest(work, str(key))
        if late is None:
            waiting.append(guests[key])
    aside = _Aside(sys.stdout, sys.stderr, waiting)
    with _redirecting, contextlib.redirect_stdout(cast("TextIO", aside)):
        for guest in waiting:
            guest.thread.start()
        until = time.monotonic() + seconds
        for guest in waiting:
            guest.thread.join(max(0.0, until - time.monotonic()))
    _known.update({key: guest for key, guest in guests.items() if not guest.done})
    return guests


@contextlib.contextmanager
def quiet_stdout() -> Iterator[Callable[[], bool]]:
    """Send what is printed to stdout to stderr; the function given tells whether anything was."""
    whoever = Guest[None](lambda: None, "")
    whoever.thread = threading.current_thread()
    with _redirecting, contextlib.redirect_stdout(cast("TextIO", _Aside(sys.stdout, sys.stderr, [whoever]))):
        yield lambda: whoever.spoke


class _Aside:
    """A stdout for guests: what they write goes to stderr and is remembered, others are not concerned."""

    def __init__(self, ours: TextIO, theirs: TextIO, guests: list[Guest[Any]]) -> None:
        self._ours, self._theirs, self._guests = ours, theirs, guests

    def _stream(self) -> TextIO:
        guest = next((each for each in self._guests if each.thread is threading.current_thread()), None)
        if guest is None:
            return self._ours
        guest.spoke = True
        return self._theirs

    def write(self, text: str) -> int:
        return self._stream().write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream() if name == "buffer" else self._ours, name)
