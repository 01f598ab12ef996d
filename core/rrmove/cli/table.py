"""Aligned columns for people: the last column is wrapped under itself on a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from rrmove.cli.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GAP = "  "
NARROW = 24  # columns below which wrapping makes things worse


def columns(
    rows: Iterable[Sequence[str]],
    head: Sequence[str] = (),
    *,
    right: Iterable[int] = (),
    indent: str = "",
    width: int | None = None,
) -> list[str]:
    """Lay out rows of cells; those numbered in `right` are aligned there.

    `width` is the terminal's by default, and without a terminal the lines are as long as they
    are: a program that reads them counts lines. Columns without any text are left out.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    used = [number for number in range(len(head)) if any(row[number] for row in cells)]
    if head:
        kept = {old: new for new, old in enumerate(used)}
        right = [kept[number] for number in right if number in kept]
        cells = [[head[number] for number in used], *([row[n] for n in used] for row in cells)]
    if not cells or not cells[0]:
        return []
    flush = set(right)
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]) - 1)]
    room = _room(width) - len(indent) - sum(widths) - len(GAP) * len(widths)
    lines: list[str] = []
    for *others, last in cells:
        padded = [
            cell.rjust(wide) if number in flush else cell.ljust(wide)
            for number, (cell, wide) in enumerate(zip(others, widths, strict=True))
        ]
        start = indent + GAP.join([*padded, ""])
        parts = textwrap.wrap(last, room, break_long_words=False) if room >= NARROW else [last]
        first, *more = parts or [""]
        lines.append((start + first).rstrip())
        lines += [" " * len(start) + part for part in more]
    return lines


def _room(width: int | None) -> int:
    if width is not None:
        return width
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def show(lines: Iterable[str]) -> None:
    """Print lines to stdout."""
    sys.stdout.writelines(f"{line}\n" for line in lines)
