"""NumPy's files: .npy arrays, and .npz archives of them. NumPy itself is not needed."""

from __future__ import annotations

import ast
import math
import re
import struct
from typing import IO, TYPE_CHECKING

from rrmove_validators.archive import PIECE, BrokenError, opened

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 1 << 20  # bytes; NumPy itself refuses to read more than 10,000 without being told to
KIND = re.compile(r"[<>|=]?([a-zA-Z])(\d+)(\[.*\])?")


def judge(path: Path) -> str | None:
    """Read every array of an archive, checksums and sizes; give a reason where one is not whole."""
    try:
        with opened(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    reason = array(stream) if member.filename.endswith(".npy") else drain(stream)
                if isinstance(reason, str):
                    return f"{member.filename!r} in it {reason}"
    except BrokenError as error:
        return str(error)
    return None


def judge_array(path: Path) -> str | None:
    """Compare a single array's size with what its header says."""
    with path.open("rb") as stream:
        reason = array(stream)
    return f"it {reason}" if reason else None


def array(stream: IO[bytes]) -> str | None:
    """Read an array to its end; give what is wrong with it, as the end of a sentence."""
    head = stream.read(8)
    if head[:6] != MAGIC or len(head) < 8:
        return "does not begin as NumPy's arrays do"
    wide = head[6] >= 2
    field = stream.read(4 if wide else 2)
    if len(field) < (4 if wide else 2):
        return "ends in its header"
    (length,) = struct.unpack("<I" if wide else "<H", field)
    text = stream.read(min(length, LONGEST_HEADER))
    if len(text) < length:
        return "ends in its header"
    try:
        said = ast.literal_eval(text.decode("utf-8" if head[6] >= 3 else "latin-1").strip())
        shape, kind = said["shape"], said["descr"]
        count = math.prod(shape)
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        return "has a header that cannot be read"
    size = item_size(kind)
    held = drain(stream)
    if size is not None and held != count * size:
        return f"has {held} bytes of data where its shape {shape} of {kind!r} has {count * size}"
    return None


def drain(stream: IO[bytes]) -> int:
    """Read to the end and count."""
    count = 0
    while piece := stream.read(PIECE):
        count += len(piece)
    return count


def item_size(kind: object) -> int | None:
    """Give the bytes of one item; None where that cannot be told from its description: objects, records."""
    found = KIND.fullmatch(kind) if isinstance(kind, str) else None
    if found is None or found[1] == "O":
        return None
    return int(found[2]) * (4 if found[1] == "U" else 1)
