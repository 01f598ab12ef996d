"""aria2's control file: which pieces of a file are there; its manual describes the format. Pure."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rrmove.manifest import Range, merged

if TYPE_CHECKING:
    from collections.abc import Sequence

_START = struct.Struct(">HII")  # version 1, whether a torrent, the length of the info hash, which follows
_HEAD = struct.Struct(">IQQI")  # piece length, total length, uploaded, length of the bitfield, which follows


def control_file(size: int, grain: int, missing: Sequence[Range], info_hash: bytes = b"") -> bytes:
    """Write one by which aria2c continues with what is missing; of a torrent where there is an info hash."""
    there = bits_there(size, grain, missing)
    start = _START.pack(1, bool(info_hash), len(info_hash)) + info_hash
    return start + _HEAD.pack(grain, size, 0, len(there)) + there + struct.pack(">I", 0)


def bits_there(size: int, grain: int, missing: Sequence[Range]) -> bytes:
    """Give the bitfield of the pieces that are whole: the first is the highest bit."""
    count = -(-size // grain)
    absent = {index for item in missing for index in range(item.start // grain, -(-item.stop // grain))}
    bits = bytearray(-(-count // 8))
    for index in range(count):
        if index not in absent:
            bits[index // 8] |= 0x80 >> index % 8
    return bytes(bits)


def ranges_there(control: bytes) -> tuple[Range, ...]:
    """Read which bytes are there whole, by the pieces; nothing where it makes no sense."""
    if len(control) < _START.size:
        return ()
    version, _, named = _START.unpack_from(control)
    if version != 1 or len(control) < _START.size + named + _HEAD.size:
        return ()
    grain, size, _, length = _HEAD.unpack_from(control, _START.size + named)
    bits = control[_START.size + named + _HEAD.size :][:length]
    count = -(-size // grain) if grain else 0
    if len(bits) != length or length != -(-count // 8):
        return ()
    there = (index for index in range(count) if bits[index // 8] & (0x80 >> index % 8))
    return merged(Range(index * grain, min(size, (index + 1) * grain)) for index in there)
