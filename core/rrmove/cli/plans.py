"""`rrmove plan` for many nodes: a plan for each, who reaches whom, who is fed first and who pulls from whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrmove.cli import failure, interrupt
from rrmove.cli.jsonlines import dumps
from rrmove.cli.plan import describe, plan_object
from rrmove.cli.stdout import kept
from rrmove.cli.table import columns, show
from rrmove.cli.text import printable, say
from rrmove.errors import RRMoveError
from rrmove.units import format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rrmove.cli.arguments import PlanCommand
    from rrmove.foresight import Foresight
    from rrmove.model import Node, Remote
    from rrmove.moving import Wishes

FAILED, NO_ROUTE = 1, 3


def run(command: PlanCommand, source: Path | Remote, nodes: Sequence[Node], wishes: Wishes) -> int:
    """Show the plans: 0 where every node has one, 1 where one could not be looked at, 3 where it has no transport."""
    from rrmove.foresight import foresee

    with kept():
        seen = interrupt.run(foresee(source, nodes, **wishes))
    if command.output.json:
        show([dumps({"nodes": [_object(each) for each in seen]})])
    else:
        show(_described(seen))
        for each in seen:
            if each.error is not None:
                say(_words(each))
    if any(each.error is not None for each in seen):
        return FAILED
    return 0 if all(each.preview is not None and each.preview.plan.steps for each in seen) else NO_ROUTE


def _described(seen: Sequence[Foresight]) -> Iterator[str]:
    for each in seen:
        if each.preview is not None:
            yield from describe(each.preview)
            yield ""
    rows = [(printable(each.node.name), *_cells(each)) for each in seen]
    yield from columns(rows, ("NODE", "FED", "BY", "EXPECTED", "REACHES"), right=(3,), wrap=(4,))


def _cells(each: Foresight) -> tuple[str, str, str, str]:
    if each.preview is None:
        return "cannot be looked at", "", "", ""
    reaches = ", ".join(map(printable, each.reaches)) or "none"
    steps, offer = each.preview.plan.steps, each.preview.request.offer
    if not each.preview.missing:
        return "has it", "", "", reaches
    if not steps:
        return "cannot be", "", "", reaches
    fed = "from here"
    if offer is not None and offer.giver is not None and steps[0].transport == "sibling":
        fed = f"by {printable(offer.giver)}"
    elif offer is not None and offer.first:
        fed = "first"
    return fed, steps[0].transport, format_seconds(steps[0].estimate.seconds), reaches


def _words(each: Foresight) -> str:
    error = failure.innermost(each.error) if each.error is not None else None
    if isinstance(error, RRMoveError):
        error.node = error.node or each.node.name
        return failure.message(error)
    return f"rrmove: {printable(each.node.name)}: {error}"


def _object(each: Foresight) -> dict[str, object]:
    if each.preview is None:
        error = failure.innermost(each.error) if each.error is not None else None
        return {"node": each.node.name, "error": str(error)}
    request = each.preview.request
    offer = request.offer
    return {
        **plan_object(each.preview),
        "audience": request.audience,
        "first": offer is not None and offer.first,
        "giver": None if offer is None else offer.giver,
        "reaches": each.reaches,
    }
