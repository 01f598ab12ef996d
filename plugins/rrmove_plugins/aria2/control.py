"""aria2's control file: which pieces of a file are there; its manual describes the format. Pure."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rrmove import Range, merged

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEAD = struct.Struct(">H4xIIQQI")  # version 1, no extension, no info hash, piece and total length, uploaded, bitfield


def control_file(size: int, grain: int, missing: Sequence[Range]) -> bytes:
    """Write one by which aria2c continues with what is missing; pieces are chunks."""
    count = -(-size // grain)
    absent = {index for item in missing for index in range(item.start // grain, -(-item.stop // grain))}
    bits = bytearray(-(-count // 8))
    for index in range(count):
        if index not in absent:
            bits[index // 8] |= 0x80 >> index % 8
    return _HEAD.pack(1, 0, grain, size, 0, len(bits)) + bytes(bits) + struct.pack(">I", 0)


def ranges_there(control: bytes) -> tuple[Range, ...]:
    """Read which bytes are there whole, by the pieces; nothing where it makes no sense."""
    if len(control) < _HEAD.size:
        return ()
    version, hash_length, grain, size, _, length = _HEAD.unpack_from(control)
    bits = control[_HEAD.size : _HEAD.size + length]
    count = -(-size // grain) if grain else 0
    if version != 1 or hash_length or len(bits) != length or length != -(-count // 8):
        return ()
    there = (index for index in range(count) if bits[index // 8] & (0x80 >> index % 8))
    return merged(Range(index * grain, min(size, (index + 1) * grain)) for index in there)
