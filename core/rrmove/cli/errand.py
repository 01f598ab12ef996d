"""What is to be moved where, looked up; and the login begun, while the rest of the program is loaded."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rrmove.cli.places import check_targets, source_of
from rrmove.errors import RRMoveError

if TYPE_CHECKING:
    from pathlib import Path

    from rrmove.cli.arguments import AutoCommand
    from rrmove.inventory import Inventory
    from rrmove.model import Node, Remote
    from rrmove.ssh.ahead import Begun
    from rrmove.ssh.login import Client


@dataclass(frozen=True, slots=True)
class Errand:
    """A source and nodes that exist, and the login where there is one node and it has been begun."""

    source: Path | Remote
    nodes: tuple[Node, ...]
    inventory: Inventory
    begun: Begun | None

    @property
    def node(self) -> Node:
        """The node, where there is one."""
        return self.nodes[0]

    def give_up(self) -> None:
        """End the login where no move took it over."""
        if self.begun is not None:
            self.begun.kill()


def look_up(command: AutoCommand) -> Errand | RRMoveError:
    """Look everything up that the command names, and start `ssh`; gives the error where that fails.

    A login takes a third of a second at the least, and loading asyncio and the planner half of
    that: nothing of it is imported before the process has been started.
    """
    try:
        check_targets(command.source, command.targets)
        source = source_of(command.source)
        from rrmove.inventory import load_inventory, places

        inventory = load_inventory(command.access.nodes, ssh_config=command.access.ssh_config)
        nodes = places(command.targets, inventory)
        begun = _begun(nodes[0], command.access.ssh) if len(nodes) == 1 else None
        return Errand(source, nodes, inventory, begun)
    except RRMoveError as error:
        return error


def _begun(node: Node, ssh: str) -> Begun:
    from rrmove.reaching import addresses_of
    from rrmove.ssh.ahead import Begun

    client: Client = (
        "openssh" if ssh == "openssh" else "own" if ssh == "paramiko" or not shutil.which("ssh") else "auto"
    )
    return Begun(node, client, addresses_of(node))
