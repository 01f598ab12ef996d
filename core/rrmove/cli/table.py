"""Aligned columns for people: on a terminal, long cells are broken into lines of their own column."""

from __future__ import annotations

import shutil
import sys
import textwrap
from itertools import zip_longest
from typing import TYPE_CHECKING

from rrmove.cli.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GAP = "  "
NARROW = 20  # columns below which breaking lines makes things worse


def columns(  # noqa: PLR0913 - what a table looks like, by name
    rows: Iterable[Sequence[str]],
    head: Sequence[str] = (),
    *,
    right: Iterable[int] = (),
    wrap: Iterable[int] = (-1,),
    spare: Iterable[int] = (),
    indent: str = "",
    width: int | None = None,
) -> list[str]:
    """Lay out rows of cells under their heads; without rows there is nothing to lay out.

    Cells numbered in `right` are aligned there; those in `wrap` are broken into lines where
    `width` is too small; where that is not enough, those in `spare` are left out, the first one
    first. The width is the terminal's by default, and without a terminal there is room for all: a
    program that reads this counts lines. Columns without any text are left out.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        return []
    count = len(cells[0])
    used = [number for number in range(count) if not head or any(row[number] for row in cells)]
    room, foldable = room_for(width) - len(indent), {number % count for number in wrap}
    least = {number: max(len(row[number]) for row in ((head, *cells) if head else cells)) for number in used}
    least |= {number: min(least[number], NARROW) for number in used if number in foldable}
    for number in spare:
        if number in used and sum(least[each] + len(GAP) for each in used) - len(GAP) > room:
            used.remove(number)
    table = [[row[number] for number in used] for row in ([list(head), *cells] if head else cells)]
    flush = {used.index(number) for number in right if number in used}
    soft = sorted(used.index(number) for number in foldable if number in used)
    widths = [max(len(row[number]) for row in table) for number in range(len(used))]
    _shrink(widths, soft, room - len(GAP) * (len(used) - 1))
    lines: list[str] = []
    for row in table:
        parts = [_broken(cell, wide) for cell, wide in zip(row, widths, strict=True)]
        for stripe in zip_longest(*parts, fillvalue=""):
            padded = [
                text.rjust(wide) if number in flush else text.ljust(wide)
                for number, (text, wide) in enumerate(zip(stripe, widths, strict=True))
            ]
            lines.append((indent + GAP.join(padded)).rstrip())
    return lines


def _shrink(widths: list[int], soft: Sequence[int], room: int) -> None:
    """Take from the widest of the soft columns until the row fits, or they get unreadable."""
    while sum(widths) > room and soft:
        widest = max(soft, key=lambda number: widths[number])
        if widths[widest] <= NARROW:
            return
        widths[widest] -= 1


def _broken(cell: str, width: int) -> list[str]:
    if len(cell) <= width:
        return [cell]
    return textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)


def room_for(width: int | None = None) -> int:
    """Give the columns that there are: `width`, else the terminal's; without a terminal as many as one likes."""
    if width is not None:
        return width
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def show(lines: Iterable[str]) -> None:
    """Print lines to stdout."""
    sys.stdout.writelines(f"{line}\n" for line in lines)
