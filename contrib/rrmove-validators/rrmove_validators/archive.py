"""Zip archives, which npz and PyTorch files are: whether every member is whole."""

from __future__ import annotations

import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIECE = 1 << 20  # bytes read at a time


class BrokenError(Exception):
    """The archive is broken; its text says how."""


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive. Raises BrokenError, also for what is found out while it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise BrokenError(f"as a zip archive it is broken or cut short: {error}") from error


def check(archive: zipfile.ZipFile) -> None:
    """Read every member and compare its checksum. Raises BrokenError, or what `opened` makes one of."""
    for member in archive.infolist():
        with archive.open(member) as stream:
            while stream.read(PIECE):
                pass  # at its end zipfile compares the checksum
