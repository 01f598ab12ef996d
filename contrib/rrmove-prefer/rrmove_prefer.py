"""A hook for rrmove that keeps a site's rules: which transports a node prefers, and which it is to be spared."""

from __future__ import annotations

import rrmove


@rrmove.hookimpl
def rrmove_plan(request: rrmove.Request, plan: rrmove.Plan) -> rrmove.Plan | None:
    """Put what the node's inventory entry says to `prefer` first, and drop what it says to `avoid`.

    Steps that would never finish stay behind those that would, whoever prefers them. Raises
    ValueError where a key is no list of names; rrmove says so, and leaves the plan as it was.
    """
    prefer = names(request.node, "prefer")
    avoid = names(request.node, "avoid")
    if not prefer and not avoid:
        return None

    def place(step: rrmove.Step) -> tuple[bool, int]:
        rank = prefer.index(step.transport) if step.transport in prefer else len(prefer)
        return step.estimate.seconds == float("inf"), rank

    kept = [step for step in plan.steps if step.transport not in avoid]
    reason = f"{request.node.name} is to be spared it: `avoid` in the inventory"
    refusals = [rrmove.Refusal(step.transport, reason) for step in plan.steps if step.transport in avoid]
    return rrmove.Plan(tuple(sorted(kept, key=place)), tuple(refusals))


def names(node: rrmove.Node, key: str) -> list[str]:
    """Give the transports that a key of the inventory names; none where it is not there."""
    value = node.extra.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{key} of {node.name} has to be a list of transports, not {value!r}")
    return value
