"""What a login runs on the node: the command that starts the agent, and the agent's text."""

from __future__ import annotations

import base64
import functools
import re
import zlib
from pathlib import Path

# Runs under whatever login shell the user has, hence one pair of single quotes and nothing clever.
# The agent's text follows on stdin as one line, so that nothing is written to the node's disk.
BOOT = (
    "sh -c '"
    "export RRMOVE_AGENT=1; command -v python3 >/dev/null 2>&1 && "
    'python3 -I -S -c "import io,sys;sys.version_info<(3,6)and sys.exit(9);import zlib,base64;'
    'exec(zlib.decompress(base64.b64decode(io.FileIO(0,closefd=False).readline())))" && exit; '
    "echo; echo RRMOVE-NO-PYTHON'"
)


PIECES = ("common", "journal", "disk", "landing", "leftovers", "node", "wire")  # each may use those before it
OF_ONE_ANOTHER = re.compile(r"^from rrmove\..* import (?:\([^)]*\)|.*)\n", re.MULTILINE)


@functools.cache
def agent_text() -> bytes:
    """Give the agent as the line that BOOT reads: printable, for channels that are not 8-bit clean."""
    return _line(agent_source())


def agent_source() -> str:
    """Join the agent's pieces into one program."""
    folder = Path(__file__).with_name("agent")
    texts = [OF_ONE_ANOTHER.sub("", (folder / f"{piece}.py").read_text("utf-8")) for piece in PIECES]
    return "\n".join([*texts, "main()\n"])


def one_line(name: str) -> bytes:
    """Give a program of this directory as a line that BOOT reads."""
    return _line(Path(__file__).with_name(name).read_text("utf-8"))


def _line(source: str) -> bytes:
    return base64.b64encode(zlib.compress(source.encode("utf-8"), 9)) + b"\n"
