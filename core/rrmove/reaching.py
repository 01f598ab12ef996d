"""Reaching: a node's addresses, with what former moves remember of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rrmove.ssh.addresses import Addresses

if TYPE_CHECKING:
    from rrmove.model import Node
    from rrmove.ssh.addresses import Answered


def addresses_of(node: Node) -> Addresses:
    """Give a node's addresses; of several, the one that let us in last is known, and the next one is remembered.

    Blocks for some ms where there are several.
    """

    def keep(answered: Answered) -> None:
        from rrmove.experience import Experience

        Experience().remember_address(node.name, answered, time.time())

    if not Addresses(node).several:  # nobody waits for the experience who has one address
        return Addresses(node, keep=keep)
    from rrmove.experience import Experience

    return Addresses(node, last=Experience().last_address(node.name, time.time()), keep=keep)


__all__ = ["addresses_of"]
