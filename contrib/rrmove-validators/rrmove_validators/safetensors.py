"""safetensors: a header in JSON, and the tensors behind it without a gap."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_HEADER = 100_000_000  # bytes, as the format has it
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def judge(path: Path) -> str | None:
    """Compare the file's size, and each tensor's, with what the header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LONGEST_HEADER, size - 8):
            return "it ends in its header, or is no safetensors file"
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return "its header is no JSON"
    if not isinstance(header, dict):
        return "its header is no JSON object"
    header.pop("__metadata__", None)
    try:
        spans = sorted((*_span(name, each), name) for name, each in header.items())
    except _OddError as odd:
        return str(odd)
    end = 0
    for start, stop, name in spans:
        if start != end:
            return f"tensor {name!r} begins at {start}, where the one before it ends at {end}"
        end = stop
    held = size - 8 - length
    return None if held == end else f"it holds {held} bytes of tensors, and its header says {end}"


class _OddError(Exception):
    """A tensor is not described as it has to be."""


def _span(name: str, tensor: Any) -> tuple[int, int]:
    try:
        start, stop = map(int, tensor["data_offsets"])
        count, kind = math.prod(map(int, tensor["shape"])), tensor["dtype"]
    except (KeyError, TypeError, ValueError) as error:
        raise _OddError(f"tensor {name!r} has no proper description") from error
    bits = BITS.get(kind)
    if stop < start or (bits is not None and (stop - start) * 8 != count * bits):
        raise _OddError(f"tensor {name!r} has {stop - start} bytes, which {tensor['shape']} of {kind} does not fit")
    return start, stop
