"""`rrmove clean`: removes what interrupted moves left on a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrmove.cli import interrupt
from rrmove.cli.jsonlines import dumps
from rrmove.cli.places import single
from rrmove.cli.table import show
from rrmove.cli.text import plural, printable
from rrmove.units import format_seconds

if TYPE_CHECKING:
    from rrmove.cli.arguments import CleanCommand


def run(command: CleanCommand) -> int:
    """Remove part files and print what was removed. Raises what `clean()` raises."""
    node, removed = interrupt.run(_clean(command))
    if command.output.json:
        show([dumps({"node": node, "removed": removed})])
        return 0
    if not removed:
        age = command.older_than
        old = f" older than {format_seconds(age)}" if age else ""
        show([f"{printable(node)}: nothing to remove, there is no part file{old}"])
        return 0
    show(f"{printable(node)}:{printable(path)}" for path in removed)
    show([f"{plural(len(removed), 'file')} removed"])
    return 0


async def _clean(command: CleanCommand) -> tuple[str, tuple[str, ...]]:
    from rrmove.care import clean
    from rrmove.inventory import load_inventory, parse_target

    access = command.access
    inventory = load_inventory(access.nodes, ssh_config=access.ssh_config)
    node = single(inventory.resolve(command.target), command.target)
    removed = await clean(
        node,
        inventory=inventory,
        ssh=access.ssh,
        older_than=command.older_than,
        path=parse_target(command.target).path or None,
    )
    return node.name, removed
