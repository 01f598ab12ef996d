"""`rrmove probe`: what nodes offer, looked at all at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rrmove.cli import interrupt
from rrmove.cli.failure import headline
from rrmove.cli.jsonlines import dumps
from rrmove.cli.table import columns, show
from rrmove.errors import RRMoveError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rrmove.cli.arguments import ProbeCommand
    from rrmove.inventory import Inventory
    from rrmove.model import Node

AT_ONCE = 16  # logins at a time; each is a process of its own with OpenSSH


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of one node: facts in words, or an error."""

    node: str
    facts: Mapping[str, str]
    error: RRMoveError | None = None


def run(command: ProbeCommand) -> int:
    """Show the nodes; 1 where one could not be reached. Raises UsageError for unknown names."""
    sights = interrupt.run(_look(command))
    if command.output.json:
        show(dumps(sight_object(sight)) for sight in sights)
    else:
        show(describe(sights))
    return 1 if any(sight.error for sight in sights) else 0


async def _look(command: ProbeCommand) -> list[Sight]:
    from rrmove.inventory import load_inventory

    access = command.access
    inventory = load_inventory(access.nodes, ssh_config=access.ssh_config)
    # Each node once, however many tags and names mean it.
    nodes = {node.name: node for word in command.nodes for node, _ in inventory.resolve(word)}
    slots = asyncio.Semaphore(AT_ONCE)

    async def seen(node: Node) -> Sight:
        async with slots:
            return await _probe(node, inventory, access.ssh)

    return await asyncio.gather(*map(seen, nodes.values()))


async def _probe(node: Node, inventory: Inventory, ssh: str) -> Sight:
    from rrmove.care import probe_node
    from rrmove.probe import describe as in_words

    try:
        facts = await probe_node(node, inventory=inventory, ssh=ssh)
    except RRMoveError as error:
        return Sight(node.name, {}, error)
    return Sight(node.name, in_words(facts))


def describe(sights: list[Sight]) -> list[str]:
    """Put what was seen into lines: a block for each node that answered, a row for the others."""
    lines: list[str] = []
    width = max((len(name) for sight in sights for name in sight.facts), default=0)
    for sight in sights:
        if sight.error is None:
            lines += ["", *columns([(sight.node,)])]
            facts = [(name.ljust(width), value) for name, value in sight.facts.items()]
            lines += columns(facts or [("nothing is known",)], indent="  ")
    lost = [(sight.node, _trouble(sight)) for sight in sights if sight.error is not None]
    if lost:
        lines += ["", *columns(lost, ("NOT REACHED", "WHY"))]
    return lines[1:]


def _trouble(sight: Sight) -> str:
    if sight.error is None:
        return ""
    what = headline(sight.error).removeprefix(f"{sight.node}: ")
    return f"{what}. {' '.join(sight.error.remedy.split())}" if sight.error.remedy else what


def sight_object(sight: Sight) -> dict[str, object]:
    """Give what was seen of one node for programs."""
    if sight.error is not None:
        return {"node": sight.node, "ok": False, "error": str(sight.error)}
    return {"node": sight.node, "ok": True, "facts": sight.facts}
