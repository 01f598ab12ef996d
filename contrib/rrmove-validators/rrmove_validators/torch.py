"""PyTorch's files: zip archives since 1.6, pickles before. Nothing in them is run, and PyTorch is not needed."""

from __future__ import annotations

import pickletools
from typing import IO, TYPE_CHECKING

from rrmove_validators.archive import BrokenError, check, opened

if TYPE_CHECKING:
    from pathlib import Path

PICKLE = b"\x80"  # what a pickle begins with from protocol 2 on


def judge(path: Path) -> str | None:
    """Check every member of an archive, and that the pickles in it end; of an old file, that its pickles do."""
    with path.open("rb") as file:
        head = file.read(2)
        file.seek(0)
        if head[:1] == PICKLE:
            return _pickle(file)
    if head != b"PK":
        return "it is neither a zip archive nor a pickle, as PyTorch's files are"
    try:
        with opened(path) as archive:
            check(archive)
            pickles = [name for name in archive.namelist() if name.endswith(("/data.pkl", "/constants.pkl"))]
            if not any(name.endswith("/data.pkl") for name in pickles):
                return "there is no data.pkl in it"
            for name in pickles:
                with archive.open(name) as stream:
                    reason = _pickle(stream)
                if reason:
                    return f"{name} in it is broken: {reason}"
    except BrokenError as error:
        return str(error)
    return None


def _pickle(stream: IO[bytes]) -> str | None:
    """Read a pickle's operations to its end, without doing any of them."""
    try:
        for _ in pickletools.genops(stream):
            pass
    except (ValueError, EOFError, UnicodeDecodeError) as error:
        return f"as a pickle it is broken or cut short: {error}"
    return None
