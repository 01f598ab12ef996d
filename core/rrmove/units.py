"""Sizes, rates and times as people write and read them: pure, no I/O."""

from __future__ import annotations

import math
import re
from typing import Annotated

from rrmove.errors import UsageError

_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([kmgtp]?)(i?)(bits?|b?)", re.IGNORECASE | re.ASCII)
_SYMBOLS = ("B", "kB", "MB", "GB", "TB", "PB")
_STEP = 1000
_BITS = 8


def parse_size(text: str) -> int:
    """Read a size in bytes: `50M` is decimal, `50MiB` (or `50Mi`) binary.

    Raises UsageError where it is no size.
    """
    return round(_quantity(text, bits=False))


def parse_rate(text: str) -> float:
    """Read a rate in bytes a second: `50M`, `50MB/s`, `50MiB`, `400Mbit/s`.

    Raises UsageError where it is no rate, or not above zero.
    """
    rate = _quantity(re.sub(r"(/s|ps)\s*$", "", text.strip(), flags=re.IGNORECASE), bits=True)
    if rate <= 0:
        raise UsageError(
            f"{text!r} is no rate: it has to be above zero",
            remedy="Leave the limit out to send as fast as the link goes",
        )
    return rate


def format_size(size: float) -> str:
    """Write bytes with three digits and a decimal unit: `4.2 MB`."""
    step = 0
    value = float(size)
    # 999.5 would be rounded to "1000": that is where the next unit begins.
    while abs(value) >= _STEP - 0.5 and step < len(_SYMBOLS) - 1:
        value /= _STEP
        step += 1
    return f"{_digits(value) if step else format(value, '.0f')} {_SYMBOLS[step]}"


def format_rate(rate: float) -> str:
    """Write bytes a second with three digits and a decimal unit: `12.5 MB/s`."""
    return f"{format_size(rate)}/s"


def format_seconds(seconds: float) -> str:
    """Write a duration as one reads it: `0.35 s`, `12 s`, `3 min 20 s`, `2 h 05 min`, `never`."""
    if not math.isfinite(seconds):
        return "unknown" if math.isnan(seconds) else "never"
    if seconds < 9.95:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# What a transport's setting may be declared as, to be written with a unit.
Size = Annotated[int, parse_size]
Rate = Annotated[float, parse_rate]


def _digits(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def _quantity(text: str, *, bits: bool) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise _unreadable(text, bits=bits)
    number, prefix, binary, unit = match.groups()
    counts_bits = unit.lower().startswith("bit")
    # "50Mb" is megabits to one reader and megabytes to the next: eightfold is too much to guess.
    if (counts_bits and not bits) or (unit == "b" and prefix.isupper() and prefix != "K"):
        raise _unreadable(text, bits=bits)
    scale = float((1024 if binary else _STEP) ** _PREFIXES[prefix.lower()])
    value = float(number) * scale
    return value / _BITS if counts_bits else value


def _unreadable(text: str, *, bits: bool) -> UsageError:
    forms = "50M or 50MB (decimal), 50MiB (binary)" + (", 400Mbit" if bits else "")
    return UsageError(f"{text!r} is no {'rate' if bits else 'size'}", remedy=f"Write it as {forms}")
