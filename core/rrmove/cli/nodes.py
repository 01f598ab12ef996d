"""`rrmove nodes`: the nodes that can be named, from the inventory and from ssh_config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrmove.cli.jsonlines import dumps
from rrmove.cli.table import columns, show
from rrmove.cli.text import printable
from rrmove.units import format_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rrmove.cli.arguments import NodesCommand
    from rrmove.inventory import Listed

HEAD = ("NODE", "HOST", "PORT", "USER", "PROVIDER", "TAGS", "LIMIT", "FROM")


def run(command: NodesCommand) -> int:
    """List them. Raises UsageError where the inventory or ssh_config is broken."""
    from rrmove.inventory import load_inventory

    inventory = load_inventory(command.access.nodes, ssh_config=command.access.ssh_config)
    if command.names:  # for completion, which cannot wait for ssh to be asked about each
        show(sorted({printable(name) for name in inventory.names()}))
        return 0
    rows = inventory.listing()
    if command.output.json:
        show(map(dumps, rows))
    else:
        show(describe(rows))
    return 0


def describe(rows: Sequence[Listed]) -> list[str]:
    """Put the nodes into a table."""
    if not rows:
        return [
            "No node is known by name yet; user@host always works",
            "    Add nodes to ./rrmove.toml or to your ssh_config: each Host there is a node",
        ]
    cells = [
        (
            row.name,
            row.host or "?",
            str(row.port or ""),
            row.user or "",
            row.provider or "",
            ", ".join(row.tags),
            _limit(row),
            row.origin,
        )
        for row in rows
    ]
    if not any(row.limits for row in rows):
        at = HEAD.index("LIMIT")
        return columns([cell[:at] + cell[at + 1 :] for cell in cells], HEAD[:at] + HEAD[at + 1 :], right=(2,))
    return columns(cells, HEAD, right=(2,))


def _limit(row: Listed) -> str:
    """Give the lowest of a node's limits, and with whom it is shared."""
    if not row.limits:
        return ""
    lowest = min(row.limits, key=lambda limit: limit.rate)
    shared = "" if lowest.scope == f"node {row.name}" else f" ({lowest.scope})"
    return f"{format_rate(lowest.rate)}{shared}"
