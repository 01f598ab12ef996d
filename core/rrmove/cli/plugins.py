"""`rrmove plugins`: the transports that are installed, and what is wrong with the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrmove.cli.jsonlines import dumps
from rrmove.cli.table import columns, show
from rrmove.cli.text import printable, printable_lines
from rrmove.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rrmove.cli.arguments import PluginsCommand
    from rrmove.discovery import PluginRow
    from rrmove.plugin_settings import Declared

KEYS = ("name", "version", "distribution", "route", "resume", "problem", "remedy")
SETTING_KEYS = ("name", "expected", "default", "variable", "help")


def run(command: PluginsCommand) -> int:
    """List them; a plugin that is broken is a row, no failure of this command."""
    from rrmove.discovery import discover
    from rrmove.plugin_settings import declared

    registry = discover(extra=command.plugins)
    rows: Sequence[PluginRow] = registry.rows
    if command.name is not None:
        rows = _named(command.name, rows)
        transport = registry.transports.get(command.name)
        settings = declared(transport) if transport is not None else ()
        if command.output.json:
            told = [{key: getattr(each, key) for key in SETTING_KEYS} for each in settings]
            show([dumps({**{key: getattr(rows[0], key) for key in KEYS}, "settings": told})])
        else:
            show([*describe(rows, verbose=True), *describe_settings(settings)])
        return 0
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


def describe_settings(settings: Sequence[Declared]) -> Iterator[str]:
    """Put the settings of a transport into lines, with how they are given."""
    if not settings:
        return
    yield ""
    rows = [(each.key, _shown(each.default), each.expected, each.help) for each in settings]
    yield from columns(rows, ("SETTING", "DEFAULT", "TAKES", ""))
    one = settings[0]
    yield ""
    yield f"Set it with -o {one.name}=VALUE, ${one.variable}, or in the inventory, for all nodes,"
    yield f"a provider or a node: [transports.{one.transport}], [nodes.NAME.transports.{one.transport}]"


def _shown(default: object) -> str:
    match default:
        case None:
            return "none"
        case bool():
            return str(default).lower()
        case tuple():
            return ",".join(map(str, default)) or "none"
        case _:
            return str(default)


def _named(name: str, rows: Sequence[PluginRow]) -> Sequence[PluginRow]:
    found = [row for row in rows if row.name == name]
    if not found:
        names = ", ".join(sorted({row.name for row in rows}))
        raise UsageError(f"there is no transport {printable(name)!r}", remedy=f"There are: {names}")
    return found
