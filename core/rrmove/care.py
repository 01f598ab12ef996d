"""Care of nodes without moving anything: probing them, and sweeping what moves left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rrmove.probe import STANDARD
from rrmove.retry import ask
from rrmove.setting import log_in, look_at, node_of

if TYPE_CHECKING:
    from rrmove.inventory import Inventory
    from rrmove.model import Node
    from rrmove.probe import Facts

GRACE = 2.0  # s that silent ports get, when somebody asks for them
DEPTH = 3  # directories below the node's destination and home that are looked through


async def probe_node(target: str | Node, *, inventory: Inventory | None = None, ssh: str = "auto") -> Facts:
    """Find out all that can be found out about a node, in one login. Raises what the login raises."""
    node, _ = node_of(target, inventory)
    async with log_in(node, ssh) as session:
        return await look_at(session, STANDARD, grace=GRACE, emit=lambda _: None)


async def clean(
    target: str | Node,
    *,
    inventory: Inventory | None = None,
    ssh: str = "auto",
    older_than: float = 0.0,
    path: str | None = None,
) -> tuple[str, ...]:
    """Remove part files that nobody has open and that are older than `older_than` seconds.

    Looks below `path`, or below the node's destination and home. Gives the removed paths.
    """
    node, destination = node_of(target, inventory)
    places = [path] if path else [place for place in (destination, node.destination) if place]
    async with log_in(node, ssh) as session:
        fields = await ask(
            session,
            "sweep",
            directories=places or ["", "/data"],
            older_than=older_than,
            depth=DEPTH,
        )
    return tuple(cast("list[str]", fields["removed"]))
