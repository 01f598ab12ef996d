"""The served roots: what is opened is reached from a root's own descriptor, name by name, never through a link.

No path is ever given to the system as a whole. Each directory on the way is opened from the one before
it, with O_NOFOLLOW, so that what happens on the disk meanwhile cannot lead out of the root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from rrmove.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Access = Literal["r", "w", "rw"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WORDS = re.compile(r"([^=]*)=(.*?)(?::(r|w|rw))?", re.DOTALL)
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class RootSpec:
    """A root as it was asked for: `NAME=PATH[:r|w|rw]`; read only where nothing else is said."""

    name: str
    path: Path
    access: Access = "r"

    @classmethod
    def parse(cls, words: str) -> RootSpec:
        """Read what stands on the command line. Raises UsageError."""
        found = _WORDS.fullmatch(words)
        if found is None or not _NAME.fullmatch(found[1]) or not found[2]:
            raise UsageError(
                f"{words!r} is no root",
                remedy="Write it as NAME=PATH, NAME=PATH:w or NAME=PATH:rw; a NAME has letters, digits, . _ -",
            )
        return cls(found[1], Path(found[2]), cast("Access", found[3] or "r"))


@dataclass(frozen=True, slots=True)
class Root:
    """A directory that is served, held open."""

    name: str
    access: Access
    fd: int

    @classmethod
    def open(cls, spec: RootSpec) -> Root:
        """Open a root; here, and only here, links are followed. Raises UsageError where it is no directory."""
        try:
            return cls(
                spec.name, spec.access, os.open(spec.path.expanduser(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            )
        except OSError as error:
            raise UsageError(
                f"the root {spec.name!r} cannot be served: {str(spec.path)!r}: {error.strerror}",
                remedy=f"Make the directory, or name another one: --root {spec.name}=PATH",
            ) from error

    @property
    def path(self) -> str:
        """The absolute path at which the directory is now."""
        return str(Path(f"/proc/self/fd/{self.fd}").readlink())

    @property
    def readable(self) -> bool:
        """Whether it may be listed and read."""
        return "r" in self.access

    @property
    def writable(self) -> bool:
        """Whether uploads may go there."""
        return "w" in self.access

    @contextlib.contextmanager
    def directory(self, names: Sequence[bytes], *, make: bool = False) -> Iterator[int]:
        """Walk down to a directory and lend its descriptor; `make` makes what is missing. Raises OSError."""
        here = os.dup(self.fd)
        try:
            for name in names:
                try:
                    below = os.open(name, _STEP, dir_fd=here)
                except FileNotFoundError:
                    if not make:
                        raise
                    with contextlib.suppress(FileExistsError):  # another upload made it just now
                        os.mkdir(name, dir_fd=here)
                    below = os.open(name, _STEP, dir_fd=here)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)


def look(directory: int, name: bytes) -> os.stat_result:
    """Say what a name is, a link as a link. Raises OSError."""
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def open_regular(directory: int, name: bytes, flags: int = os.O_RDONLY) -> int:
    """Open a regular file. Raises OSError: ENOENT for links, EISDIR for directories, EACCES for the rest.

    It is looked at before it is opened for real: opening a device or a FIFO may do something.
    """
    seen = os.open(name, _LOOK, dir_fd=directory)
    try:
        mode = os.fstat(seen).st_mode
        if stat.S_ISLNK(mode):
            raise OSError(errno.ENOENT, "it is a symbolic link, and none is followed")
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, "it is a directory")
        if not stat.S_ISREG(mode):
            raise OSError(errno.EACCES, "it is no regular file")
        return os.open(f"/proc/self/fd/{seen}", flags | os.O_CLOEXEC)
    finally:
        os.close(seen)
