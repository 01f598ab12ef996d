"""What the node's POSIX tools say, read; and what is said to them, written. Pure, no I/O."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from typing import Self

# How the tools of GNU, busybox, musl and the shells end their complaints.
_SAID = {
    "no space left on device": "ENOSPC",
    "disk quota exceeded": "EDQUOT",
    "quota exceeded": "EDQUOT",
    "file too large": "EFBIG",
    "permission denied": "EACCES",
    "operation not permitted": "EPERM",
    "read-only file system": "EROFS",
    "is a directory": "EISDIR",
    "not a directory": "ENOTDIR",
    "no such file or directory": "ENOENT",
    "no such file": "ENOENT",
    "directory nonexistent": "ENOENT",
    "nonexistent directory": "ENOENT",
    "file exists": "EEXIST",
    "file name too long": "ENAMETOOLONG",
    "filename too long": "ENAMETOOLONG",
    "too many levels of symbolic links": "ELOOP",
    "symbolic link loop": "ELOOP",
    "invalid argument": "EINVAL",
    "input/output error": "EIO",
    "i/o error": "EIO",
    "stale file handle": "ESTALE",
    "device or resource busy": "EBUSY",
    "resource busy": "EBUSY",
    "text file busy": "ETXTBSY",
}
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789./_-")
_ENDS = re.compile(r"(?:^|: )(" + "|".join(map(re.escape, _SAID)) + r")$", re.IGNORECASE | re.MULTILINE)
_TOO_LARGE = 128 + 25  # SIGXFSZ
_ROOM = re.compile(r"\s[0-9]+\s+-?[0-9]+\s+(-?[0-9]{1,18})\s+(?:[0-9]+%|-)\s")


def errno_of(status: str, words: str) -> str:
    """Name the errno that tools complained of; EPROTO where the words are unknown.

    `status` is the exit status, or the name itself where the floor checked by its own means.
    """
    if status.startswith("E"):
        return status
    found = _ENDS.findall(words)
    if found:
        return _SAID[found[-1].lower()]
    return "EFBIG" if status == str(_TOO_LARGE) else "EPROTO"


def encode_word(word: str) -> str:
    """Write an argument in letters, digits and `./_-`, everything else as printf's octal escapes."""
    if isinstance(word, Plain):
        return word
    data = word.encode("utf-8", "surrogateescape")
    return "=" + "".join(chr(b) if chr(b) in _SAFE else f"\\0{b:03o}" for b in data)


class Plain(str):
    """A word that goes as it is: a number, or a name of ours."""

    __slots__ = ()

    def __new__(cls, word: object) -> Self:
        """Make it of anything that prints as letters, digits and `.:_-`."""
        return super().__new__(cls, word)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the node's `stat` says of a file, or its `ls` where there is no `stat`; held is in bytes."""

    ino: str
    size: int
    held: int
    mode: int
    mtime_ns: int | None

    @classmethod
    def of(cls, line: str) -> Seen:
        """Read one line. Raises ValueError where it is none."""
        words = line.split()
        if ":" in words[0]:
            ino, size, blocks, block, mode, moment = words[:6]
            whole, _, fraction = moment.partition(".")
            mtime_ns = int(whole) * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)
            return cls(ino, int(size), int(blocks) * int(block), int(mode, 16), mtime_ns)
        inode, rights, _, _, _, size = words[:6]
        # How much of it is there `ls` does not say: taken for all, so that it gets looked at.
        kind = {"-": stat.S_IFREG, "d": stat.S_IFDIR}.get(rights[0], stat.S_IFIFO)
        bits = sum(1 << (8 - i) for i, letter in enumerate(rights[1:10]) if letter not in "-ST")
        length = int(size) if size.isdigit() else 0  # a device has its numbers there
        return cls(f"0:{inode}", length, length, kind | bits, None)


def free_bytes(listing: str) -> int | None:
    """Read what `df -Pk` says is available, in bytes; None where it says nothing."""
    found = [match for line in listing.splitlines()[1:] if (match := _ROOM.search(line))]
    return max(0, int(found[0][1])) * 1024 if found else None
