"""`rrmove nodes`: the nodes that can be named, from the inventory and from ssh_config."""

from __future__ import annotations

import time
from dataclasses import replace
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
FURTHER = ("FURTHER ADDRESSES", "LAST USED")  # where a node has any


def run(command: NodesCommand) -> int:
    """List them. Raises UsageError where the inventory or ssh_config is broken."""
    from rrmove.inventory import load_inventory

    inventory = load_inventory(command.access.nodes, ssh_config=command.access.ssh_config)
    if command.names:  # for completion, which cannot wait for ssh to be asked about each
        show(sorted({printable(name) for name in inventory.names()}))
        return 0
    rows = [_remembered(row) for row in inventory.listing()]
    if command.output.json:
        show(map(dumps, rows))
    else:
        show(describe(rows))
    return 0


def _remembered(row: Listed) -> Listed:
    """Add at which of several addresses the node let us in last."""
    if not row.addresses:
        return row
    from rrmove.experience import Experience

    last = Experience().last_address(row.name, time.time())
    return row if last is None else replace(row, last=last.shown)


def describe(rows: Sequence[Listed]) -> list[str]:
    """Put the nodes into a table."""
    if not rows:
        return [
            "No node is known by name yet; user@host always works",
            "    Add nodes to ./rrmove.toml or to your ssh_config: each Host there is a node",
        ]
    further = any(row.addresses for row in rows)
    cells: list[tuple[str, ...]] = [
        (
            row.name,
            row.host or "?",
            str(row.port or ""),
            row.user or "",
            row.provider or "",
            ", ".join(row.tags),
            _limit(row),
            row.origin,
            *((", ".join(row.addresses), row.last or "") if further else ()),
        )
        for row in rows
    ]
    head: tuple[str, ...] = HEAD + FURTHER if further else HEAD
    if not any(row.limits for row in rows):
        at = HEAD.index("LIMIT")
        cells, head = [(*cell[:at], *cell[at + 1 :]) for cell in cells], head[:at] + head[at + 1 :]
    return columns(cells, head, right=(2,))


def _limit(row: Listed) -> str:
    """Give the lowest of a node's limits, and with whom it is shared."""
    if not row.limits:
        return ""
    lowest = min(row.limits, key=lambda limit: limit.rate)
    shared = "" if lowest.scope == f"node {row.name}" else f" ({lowest.scope})"
    return f"{format_rate(lowest.rate)}{shared}"
