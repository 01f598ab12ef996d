"""The ranking: which transports may serve a request, in which order, and who was refused. Pure."""

from __future__ import annotations

import difflib
import math
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, cast

from rrmove.errors import NoRouteError, UsageError
from rrmove.estimate import THROUGH_US, Sharing, estimate
from rrmove.link import link_of
from rrmove.model import Plan, Refusal, Remote, Step
from rrmove.probe import CLEAN, PORTS, REACH, port_in_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rrmove.knowledge import Knowledge, Life
    from rrmove.link import Link
    from rrmove.model import Estimate, Node, Options, Request, Route
    from rrmove.probe import Facts
    from rrmove.transport import Capabilities, Transport

NOBODY = "no other node is known that gets this file now and passes it on"
FLOOR = "chunked"  # needs one open port and nothing installed: leads where nothing else is finite
_NONE: Mapping[str, str] = MappingProxyType({})


def make_plan(  # noqa: PLR0913 - all that a ranking depends on, and nothing hidden
    request: Request,
    facts: Facts,
    knowledge: Knowledge,
    transports: Mapping[str, Transport],
    *,
    missing: int | None = None,
    problems: Mapping[str, str] = _NONE,
    seen: Sequence[Life] = (),
    uplink: float | None = None,
) -> Plan:
    """Rank the transports by the seconds they are expected to take; ties by name.

    `missing` are the bytes that are not on the node yet (default: all of them); `problems` are
    the plugins that could not be loaded, with the reason; `seen` the connections that this very
    move has lost; `uplink` what our own line was seen to carry, in bytes a second, which all of the request's
    audience share. A transport that would never finish comes after all that would. Refused is one
    whose routes were all seen shut, and one whose `refuse` raises or answers nonsense, with what it
    said. Raises UsageError where the options name a transport that does not exist. The plan may be
    empty: see `require_route`.
    """
    _check_names(request.options, [*transports, *problems])
    size = request.source.size
    missing = size if missing is None else missing
    link = _limited(link_of(request.node, facts, knowledge, seen), request.options)
    refusals = [Refusal(name, reason) for name, reason in problems.items()]
    ranking: list[tuple[tuple[float, int, str], Step]] = []
    kind: Literal["file", "url"] = "url" if isinstance(request.source, Remote) else "file"
    for name, transport in transports.items():
        reason = _left_out(name, request.options)
        if reason is None and kind not in getattr(transport.capabilities, "sources", ("file",)):
            reason = f"it cannot move {'a URL' if kind == 'url' else 'a local file'}"
            if name not in request.options.only:
                continue  # no news for anybody
        reason = reason or _refused(transport, request, facts)
        if reason is not None:
            refusals.append(Refusal(name, reason))
            continue
        try:
            way = _way(transport.capabilities, request, facts)
            if isinstance(way, str):
                refusals.append(Refusal(name, way))
                continue
            expected = estimate(
                replace(_on_this_way(_suited(transport, request, facts), facts), route=way[0]),
                missing=missing,
                size=size,
                # What a sibling gives does not leave from here: of all limits only the node's own is for that.
                link=replace(link, limit_rate=request.node.limit_rate) if way[0] == "sibling" else link,
                transport=name,
                knowledge=knowledge,
                seen=way[1],
                sharing=_sharing(way[0], request, facts, uplink),
            )
            expected = replace(expected, note=_words_of(way[0], request) + expected.note)
            ranking.append(_ranked(name, expected, _RESUME.index(transport.capabilities.resume)))
        except Exception as error:  # noqa: BLE001 - it is a guest, and must not end the plan
            refusals.append(Refusal(name, f"its capabilities are unusable: {_said(error)}"))
    # What the node can fetch itself does not go through us, whatever the seconds: our line is not ours
    # alone, and nothing is known of the server's.
    through_us = {name for name, each in transports.items() if kind == "url" and each.capabilities.route == "ssh"}
    ranking.sort(key=lambda ranked: (ranked[1].transport in through_us, ranked[0]))
    refusals.sort(key=lambda refusal: refusal.transport)
    return Plan(tuple(step for _, step in ranking), tuple(refusals))


def _sharing(route: Route, request: Request, facts: Facts, uplink: float | None) -> Sharing:
    """Say how the others who get the file at the same time bear on a route."""
    elsewhere = request.options.mirrors or isinstance(request.source, Remote)
    through_us = route in THROUGH_US or (route == "web" and not elsewhere)
    audience = request.audience if through_us or route == "swarm" else 1
    # A torrent port that let us in lets others in; a node that lets nobody in gets all it needs from us.
    state = (facts.get(PORTS) or {}).get(request.node.ports.torrent)
    meets = state in {"open", "refused"} or (request.offer is not None and request.offer.giver is not None)
    limit = request.shared_limit
    return Sharing(audience=audience, uplink=uplink, limit_rate=limit, offer=request.offer, meets=meets)


def require_route(plan: Plan, node: Node) -> Plan:
    """Give the plan back, or raise NoRouteError with its refusals where no step is left."""
    if plan.steps:
        return plan
    raise NoRouteError(
        "no transport can serve",
        refusals=plan.refusals,
        node=node.name,
        tried=", ".join(refusal.transport for refusal in plan.refusals) or None,
        remedy=f"`rrmove plan` says why each was refused, `rrmove probe {node.name}` what to mend",
    )


_WAYS: Mapping[Route, str] = MappingProxyType(
    {"direct": "into the node's data port: ", "reverse": "the node pulls from us: ", "swarm": "in a swarm: "}
)


def _words_of(route: Route, request: Request) -> str:
    """Say by which way it goes, where that is not plain from the transport."""
    if route == "sibling" and request.offer is not None:
        return f"pulled from {request.offer.giver} as that has it: "
    return _WAYS.get(route, "")


def _way(capabilities: Capabilities, request: Request, facts: Facts) -> tuple[Route, bool] | str:
    """Choose the route that a transport would take, and tell whether it was seen open; or say why there is none."""
    routes = [route for route in (capabilities.route, capabilities.fallback) if route is not None]
    shut = {route: _shut(route, request, facts) for route in routes}
    for route in routes:
        if shut[route] is False:
            return route, True
    for route in routes:
        if shut[route] is None:
            return route, False
    return ", and ".join(str(shut[route]) for route in routes)


def _shut(route: Route, request: Request, facts: Facts) -> str | bool | None:
    """Say why a route leads nowhere: False where it was seen open, None where nobody has looked."""
    node, offer = request.node, request.offer
    elsewhere = request.options.mirrors or isinstance(request.source, Remote)
    match route:
        case "direct" if offer is not None and offer.listens:
            return f"port {node.ports.data} of the node is where others pull the file from"
        case "direct":
            return _direct_shut(facts, node.ports.data)
        case "swarm":
            return _swarm_shut(facts, node.ports.torrent)
        case "sibling":
            return False if offer is not None and offer.giver is not None else offer.why if offer else NOBODY
        case "reverse" | "web" if route == "reverse" or not elsewhere:
            reach = facts.get(REACH)
            return None if reach is None else not reach and "the node cannot reach us"
    return False


def _direct_shut(facts: Facts, port: int) -> str | bool | None:
    state = (facts.get(PORTS) or {}).get(port)
    if state in {"filtered", "unreachable"}:
        return f"port {port} of the node is {port_in_words(facts, port)}"
    return None if state is None else False  # refused: nothing listens there yet


def _swarm_shut(facts: Facts, port: int) -> str | bool | None:
    """Say whether a swarm can form: it is enough that one of both ends reaches the other."""
    state, reach = (facts.get(PORTS) or {}).get(port), facts.get(REACH)
    blocked = state in {"filtered", "unreachable"}
    if reach or not (blocked or state is None):
        return False
    if reach is None or not blocked:
        return None
    return f"port {port} of the node is {port_in_words(facts, port)}, and the node cannot reach us"


TEXT = 4 / 3  # bytes on the wire for each one where lanes have to be of text


def _suited(transport: Transport, request: Request, facts: Facts) -> Capabilities:
    """Give what a transport can do for this request, where it says so."""
    suited = getattr(transport, "suited", None)
    return transport.capabilities if suited is None else cast("Capabilities", suited(request, facts))


def _on_this_way(capabilities: Capabilities, facts: Facts) -> Capabilities:
    """Count what a connection that is not 8-bit clean costs whoever sends over lanes."""
    if facts.get(CLEAN) is not False or not capabilities.lanes_only:
        return capabilities
    return replace(capabilities, overhead=max(capabilities.overhead, TEXT))


_RESUME = ("exact", "rescan", "none")  # the less a loss costs, the better a last resort


def _ranked(name: str, expected: Estimate, resume: int) -> tuple[tuple[float, int, str], Step]:
    seconds, reason = expected.seconds, expected.note
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"they give {seconds} seconds")
    if math.isinf(seconds):
        last = -1 if name == FLOOR else resume
        reason = f"a last resort, not expected to finish: {reason}"
        return (seconds, last, name), Step(name, expected, reason)
    if name == FLOOR:
        reason = f"{reason}; needs nothing but SSH"
    return (seconds, 0, name), Step(name, expected, reason)


def _limited(link: Link, options: Options) -> Link:
    limits = [limit for limit in (link.limit_rate, options.limit_rate) if limit is not None]
    return replace(link, limit_rate=min(limits, default=None))


def _left_out(name: str, options: Options) -> str | None:
    if name in options.without:
        return "left out: --without names it"
    if options.only and name not in options.only:
        return f"left out: --only {','.join(options.only)}"
    return None


def _refused(transport: Transport, request: Request, facts: Facts) -> str | None:
    try:
        answer: object = transport.refuse(request, facts)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is a guest, and must not end the plan
        return f"its refuse() failed: {_said(error)}"
    if not answer:
        return None
    return answer if isinstance(answer, str) else f"its refuse() answered {answer!r}, not a reason"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _check_names(options: Options, known: Sequence[str]) -> None:
    for option, names in (("--only", options.only), ("--without", options.without)):
        for name in names:
            if name in known:
                continue
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            there = ", ".join(near or sorted(known)) or "none"
            word = "Did you mean" if near else "There are"
            end = "?" if near else ""
            raise UsageError(
                f"{option} names the transport {name!r}, which does not exist",
                remedy=f"{word}: {there}{end}",
            )
