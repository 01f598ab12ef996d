"""`rrmove plugins`: the transports that are installed, and what is wrong with the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrmove.cli.jsonlines import dumps
from rrmove.cli.table import columns, show
from rrmove.cli.text import printable_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rrmove.cli.arguments import PluginsCommand
    from rrmove.discovery import PluginRow

KEYS = ("name", "version", "distribution", "route", "resume", "problem", "remedy")


def run(command: PluginsCommand) -> int:
    """List them; a plugin that is broken is a row, no failure of this command."""
    from rrmove.discovery import discover

    rows = discover().rows
    if command.output.json:
        show(dumps({key: getattr(row, key) for key in KEYS}) for row in rows)
    else:
        show(describe(rows, verbose=command.output.verbose))
    return 0


def describe(rows: Sequence[PluginRow], *, verbose: bool = False) -> Iterator[str]:
    """Put the rows into lines: a table of those that work, then those with a problem."""
    if not rows:
        yield "No transport is installed: this installation of rrmove is broken"
        yield "    Install it again: `pip install --force-reinstall rrmove`"
        return
    good = [
        (row.name, row.version, row.distribution, row.route or "?", row.resume or "?")
        for row in rows
        if row.problem is None
    ]
    yield from columns(good, ("TRANSPORT", "VERSION", "DISTRIBUTION", "ROUTE", "RESUME"))
    for row in rows:
        if row.problem is None and row.remedy is None:
            continue
        yield ""
        of = f"{row.name} ({row.distribution} {row.version})"
        yield from columns([(of, row.problem or "is used")])
        if row.remedy:
            yield "    " + printable_lines(row.remedy, "    ")
        if verbose and row.trace:
            yield "    " + printable_lines(row.trace, "    ")
