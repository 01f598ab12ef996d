"""The torrent of one file: how long its pieces are, their SHA-1, and the .torrent around them (BEP 3)."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rrmove.dht import bencode
from rrmove.errors import Fatal

if TYPE_CHECKING:
    import threading
    from pathlib import Path

NAME = b"file"  # of the one file: everybody knows it under a link of that name in a directory of their own
BLOCK = 1 << 20  # bytes that are hashed at a time


@dataclass(frozen=True, slots=True)
class Metainfo:
    """A v1 torrent: the bytes of its .torrent, and what clients know it by."""

    torrent: bytes
    info_hash: bytes
    piece: int


def hashed(path: Path, size: int, piece: int, stop: threading.Event) -> bytes:
    """Read the file and give the SHA-1 of each piece, joined; less of them once told to stop.

    Raises Fatal where it cannot be read, or has become shorter.
    """
    digests, buffer = bytearray(), memoryview(bytearray(BLOCK))
    try:
        with path.open("rb", buffering=0) as file:
            for start in range(0, size, piece):
                sha, left = hashlib.sha1(usedforsecurity=False), min(piece, size - start)
                while left and not stop.is_set():
                    got = file.readinto(buffer[: min(left, BLOCK)])
                    if not got:
                        raise Fatal(f"{str(path)!r} has become shorter while it was read")
                    sha.update(buffer[:got])
                    left -= got
                digests += sha.digest()
    except OSError as error:
        raise Fatal(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    return bytes(digests)


def metainfo(size: int, piece: int, digests: bytes, *, private: bool) -> Metainfo:
    """Write the .torrent. Random bytes are in it, so that its info hash is a secret of those who are given it.

    Who does not know the info hash cannot take part, nor read along where connections are encrypted.
    """
    info: dict[bytes, object] = {
        b"length": size,
        b"name": NAME,
        b"piece length": piece,
        b"pieces": digests,
        b"source": secrets.token_bytes(20),
    }
    if private:
        info[b"private"] = 1
    return Metainfo(
        torrent=bencode({b"info": info}),  # type: ignore[dict-item]
        info_hash=hashlib.sha1(bencode(info), usedforsecurity=False).digest(),  # type: ignore[arg-type]
        piece=piece,
    )


__all__ = ["NAME", "Metainfo", "hashed", "metainfo"]
