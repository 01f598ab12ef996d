"""Our stdout, kept for results: what plugins and the programs they start print there goes to stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

from rrmove.cli.text import printable, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def kept(who: Callable[[], str] = lambda: "") -> Iterator[TextIO]:
    """Give the stream for results, and turn everyone else's stdout into stderr meanwhile.

    `who` names the transport that is at work, to be told when it prints. Where stdout is the
    process's own, that holds for what other processes and libraries write to the descriptor, too.
    """
    ours = cast("TextIO", sys.stdout)
    with contextlib.ExitStack() as stack:
        out = ours
        if ours is sys.__stdout__ and _is_descriptor_one(ours):
            ours.flush()
            saved = os.dup(1)
            stack.callback(os.close, saved)
            out = stack.enter_context(open(saved, "w", encoding=ours.encoding, errors=ours.errors, closefd=False))
            os.dup2(2, 1)
            stack.callback(os.dup2, saved, 1)
        stack.enter_context(contextlib.redirect_stdout(cast("TextIO", _Theirs(who))))
        yield out


def _is_descriptor_one(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):
        return False


class _Theirs:
    """The stdout of plugins: passes all on to stderr, and says once who prints there."""

    def __init__(self, who: Callable[[], str]) -> None:
        self._who = who
        self._told = False

    def write(self, text: str) -> int:
        if not self._told:
            self._told = True
            name = printable(self._who()) or "a plugin"
            say(f"rrmove: {name} prints to stdout, which is for results: it is shown here")
        return sys.stderr.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)
