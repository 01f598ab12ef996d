"""`rrmove plan`: the ranking, the sums behind it, who was refused, and what former moves took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrmove.cli import interrupt
from rrmove.cli.asked import asked
from rrmove.cli.jsonlines import dumps
from rrmove.cli.places import check_targets, source_of
from rrmove.cli.stdout import kept
from rrmove.cli.table import columns, show
from rrmove.cli.text import amount, printable
from rrmove.model import Remote
from rrmove.units import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rrmove.cli.arguments import PlanCommand
    from rrmove.inventory import Inventory
    from rrmove.model import Node, Step
    from rrmove.moving import Preview

NO_ROUTE = 3
NOTHING = 0.005  # seconds below which a term changes no sum
HISTORY = 10  # former moves that are shown


def run(command: PlanCommand) -> int:
    """Show the plan, or one for each node; 3 where no transport can serve. Raises what `preview()` raises for one."""
    from rrmove.inventory import load_inventory, places

    check_targets(command.source, command.targets)
    source = source_of(command.source)
    inventory = load_inventory(command.access.nodes, ssh_config=command.access.ssh_config)
    nodes = places(command.targets, inventory)
    if len(nodes) > 1:
        from rrmove.cli import plans

        return plans.run(command, source, nodes, asked(command, inventory))
    with kept():
        seen = interrupt.run(_look(command, source, nodes[0], inventory))
    show([dumps(plan_object(seen))] if command.output.json else describe(seen))
    return 0 if seen.plan.steps else NO_ROUTE


async def _look(command: PlanCommand, source: Path | Remote, node: Node, inventory: Inventory) -> Preview:
    from rrmove.moving import preview

    return await preview(source, node, **asked(command, inventory))


def describe(seen: Preview) -> Iterator[str]:
    """Put a plan into lines."""
    request, plan = seen.request, seen.plan
    source, node = request.source, request.node
    place = f"{node.name}:{request.destination}" if request.destination else node.name
    yield printable(f"{source.name} -> {place}: {_to_send(seen)}")
    yield ""
    if plan.steps:
        rows = [
            (
                str(rank),
                step.transport,
                format_seconds(step.estimate.seconds),
                terms(step),
                step.reason,
            )
            for rank, step in enumerate(plan.steps, 1)
        ]
        yield from columns(rows, ("RANK", "TRANSPORT", "EXPECTED", "SUM", "REASON"), right=(0, 2), wrap=(3, 4))
    else:
        yield "No transport can serve."
    if plan.refusals:
        yield ""
        refused = [(refusal.transport, refusal.reason) for refusal in plan.refusals]
        yield from columns(refused, ("REFUSED", "WHY"))
    if history := seen.knowledge.history[:HISTORY]:
        yield ""
        past = [
            (transport, format_seconds(predicted), format_seconds(actual), off(predicted, actual))
            for transport, predicted, actual in history
        ]
        yield from columns(past, ("BEFORE", "PREDICTED", "TOOK", "OFF BY"), right=(1, 2, 3))


def _to_send(seen: Preview) -> str:
    source = seen.request.source
    size = source.size
    if isinstance(source, Remote) and not source.sized:
        return "of a size that the server does not tell"
    if not seen.missing:
        return f"all {format_size(size)} are there already"
    if seen.missing < size:
        return f"{amount(seen.missing, size)} to send, the rest is there"
    return f"{format_size(size)} to send"


def terms(step: Step) -> str:
    """Give the sum behind an estimate, `1.3 s connect + 46 s send`, and its note if the reason has it not."""
    estimate, total = step.estimate, ""
    for what, seconds in estimate.terms:
        if abs(seconds) >= NOTHING:
            sign = (" - " if seconds < 0 else " + ") if total else ("-" if seconds < 0 else "")
            counted = "for " if what[:1].isdigit() else ""  # "0.8 s for 3 reconnects"
            total += f"{sign}{format_seconds(abs(seconds))} {counted}{what}"
    note = "" if estimate.note in step.reason else estimate.note
    return "; ".join(filter(None, (total, note)))


def off(predicted: float, actual: float) -> str:
    """Give by how much a prediction was wrong: `+12 %` where it took longer."""
    if not 0 < predicted < float("inf"):
        return ""
    return f"{(actual - predicted) / predicted * 100:+.0f} %"


def plan_object(seen: Preview) -> dict[str, object]:
    """Give a plan for programs; seconds that are infinite are null."""
    request, plan = seen.request, seen.plan
    return {
        "source": request.source.shown,
        "node": request.node.name,
        "destination": request.destination or None,
        "size": request.source.size,
        "missing": seen.missing,
        "digest": seen.digest,
        "steps": [
            {
                "rank": rank,
                "transport": step.transport,
                "seconds": step.estimate.seconds,
                "terms": [{"what": what, "seconds": seconds} for what, seconds in step.estimate.terms],
                "note": step.estimate.note,
                "reason": step.reason,
            }
            for rank, step in enumerate(plan.steps, 1)
        ],
        "refusals": [{"transport": refusal.transport, "reason": refusal.reason} for refusal in plan.refusals],
        "history": [
            {"transport": transport, "predicted": predicted, "actual": actual}
            for transport, predicted, actual in seen.knowledge.history
        ],
    }
