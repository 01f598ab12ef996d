"""Errors -> a message that says the next step, and an exit code. Nobody is shown a traceback."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rrmove.cli.text import printable, printable_lines, say
from rrmove.errors import NoRouteError, RRMoveError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

FAILED = 1
INTERRUPTED = 130
INDENT = "    "


def report(error: BaseException, argv: Sequence[str] = ()) -> int:
    """Say on stderr what went wrong and return the exit code that goes with it."""
    error = innermost(error)
    if isinstance(error, RRMoveError):
        say(message(error))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        say("rrmove: interrupted")
        return INTERRUPTED
    say(internal(error, argv))
    return FAILED


def innermost(error: BaseException) -> BaseException:
    """Take an error out of the groups it travelled in, alone or with others of rrmove's own."""
    while isinstance(error, BaseExceptionGroup):
        known, unknown = error.split(RRMoveError)
        if len(error.exceptions) > 1 and (known is None or unknown is not None):
            break
        error = error.exceptions[0]
    return error


def headline(error: RRMoveError) -> str:
    """Give what went wrong and where, without the remedy, in one line."""
    head = f"{error.node}: {error.what}" if error.node else error.what
    return printable(f"{head} (tried: {error.tried})" if error.tried else head)


def message(error: RRMoveError) -> str:
    """Give the whole message: what went wrong, the refusals, and on its own line the remedy."""
    lines = [f"rrmove: {headline(error)}"]
    if isinstance(error, NoRouteError) and error.refusals:
        width = max(len(printable(refusal.transport)) for refusal in error.refusals)
        lines += [
            f"{INDENT}{printable(refusal.transport):{width}}  {printable(refusal.reason)}" for refusal in error.refusals
        ]
    if error.remedy:
        lines.append(INDENT + printable_lines(error.remedy, INDENT))
    return "\n".join(lines)


def internal(error: BaseException, argv: Sequence[str]) -> str:
    """Write what is no error of the user's to a file, and give the message that names it."""
    words = printable(str(error))
    head = f"rrmove: internal error: {type(error).__name__}{f': {words}' if words else ''}"
    try:
        where = f"the details are in {printable(write_details(error, argv))}"
    except OSError as trouble:
        where = f"the details could not be written: {printable(str(trouble))}"
    return f"{head}; {where}"


def write_details(error: BaseException, argv: Sequence[str]) -> str:
    """Write the traceback to a new file that only the user can read, and return its path."""
    import platform
    import tempfile
    import time
    import traceback

    details = "".join(
        (
            f"rrmove failed on {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n",
            f"arguments: {list(argv)!a}\n",
            f"python: {platform.python_version()} on {platform.platform()}\n\n",
            *traceback.format_exception(error),
        )
    )
    prefix = time.strftime("error-%Y%m%d-%H%M%S-")
    folder: str | None = None
    with contextlib.suppress(OSError, RuntimeError):  # a read-only home: the temporary directory
        folder = str(state_directory())
    descriptor, path = tempfile.mkstemp(".txt", prefix, folder)  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(details)
    return path


def state_directory() -> Path:
    """Give the directory for what a program keeps about itself, made where it is missing."""
    state = os.environ.get("XDG_STATE_HOME", "")
    parent = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    folder = parent / "rrmove"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def let_the_reader_go(out: TextIO | None = None) -> None:
    """Forget what the reader of stdout no longer wants, so that Python's own exit stays quiet."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, (out or sys.stdout).fileno())
        os.close(nowhere)
