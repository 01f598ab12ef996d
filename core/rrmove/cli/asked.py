"""What was typed, as the calls of `rrmove` take it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rrmove.cli.arguments import AutoCommand, PlanCommand
    from rrmove.inventory import Inventory
    from rrmove.moving import Wishes


def asked(command: AutoCommand | PlanCommand, inventory: Inventory) -> Wishes:
    """Put a command's options into a call's words."""
    access, options = command.access, command.options
    return {
        "only": options.only,
        "without": options.without,
        "limit_rate": options.limit_rate,
        "deadline": options.deadline,
        "priority": options.priority,
        "sha256": options.sha256,
        "settings": {each.name: each.value for each in options.settings},
        "plugins": options.plugins,
        "mirrors": options.mirrors,
        "inventory": inventory,
        "ssh": access.ssh,
    }
