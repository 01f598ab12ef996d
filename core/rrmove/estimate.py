"""The estimate: expected seconds of a step over a link, and the sum they come from. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rrmove.link import PRIOR_WEIGHT, SSH_WINDOW, UNKNOWN_RATE, UNKNOWN_RATES, Link, blend, settled_rate, trust
from rrmove.model import Estimate
from rrmove.units import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rrmove.knowledge import Knowledge
    from rrmove.model import Offer, Route
    from rrmove.transport import Capabilities

# --- what a connection can do ---------------------------------------------------------------
TCP_WINDOW = 6 * 1024 * 1024  # Linux's default ceiling of tcp_rmem
FIRST_WINDOW = 10 * 1460  # RFC 6928: what TCP sends before the first acknowledgement
# Bytes a second that two cores carry without a network, all connections together. Measured on
# loopback: the framed agent 418 MB/s over SSH; HTTP 837-1270 MB/s; libtorrent 224-487 MB/s.
SSH_CEILING = 400e6
DIRECT_CEILING = 1000e6
SWARM_CEILING = 300e6
START_SECONDS = 0.1  # measured: a program started over the login and listening, certificate and all: 60 to 130 ms
REREAD_RATE = 500e6  # measured: sha256sum reads 480 MB/s; 6.0 GB were not reread within 4 s

# --- what a lost connection does ------------------------------------------------------------
# Measured: of 64 MiB over connections reset after 6 MB, a third was sent twice: what was in the
# channel window when the connection died.
IN_FLIGHT = SSH_WINDOW
IN_FLIGHT_SHARE = 1 / 3
FRAME = 256 * 1024  # the least that a transport with exact resume acknowledges at once
LIFE_SPREAD = 1 / 3  # lives of 4 to 8 s: a third up or down around the middle
LIVELOCK_SHARE = 0.8  # of a life spent on rereading: no progress is left that one could count on

# --- what most likely is in vain -------------------------------------------------------------
# A port that nobody has seen open is most likely shut: of six providers one lets any port in but
# SSH's (field notes).
UNSEEN_ROUTE = 1 / 6

# --- who shares our line --------------------------------------------------------------------
THROUGH_US: frozenset[Route] = frozenset({"ssh", "direct", "reverse"})  # routes whose bytes leave by our uplink
SIBLING_RATE = 125e6  # bytes a second between two nodes; chosen as a line of which nothing is known: 1 Gbit/s
SWARM_PASS = 1.2  # times that a file leaves here until a swarm has it; chosen: once, and what peers ask for twice

# --- the choice of how many connections -----------------------------------------------------
MAX_STREAMS = 64  # more are never reckoned with; measured: sixteen gain nothing over eight
WORTHWHILE = 0.05  # one more connection has to save this share of the time


@dataclass(frozen=True, slots=True)
class Sharing:
    """Who else gets the same file from here at the same time, and what it can be had for from one of them.

    `audience` counts those who share our line, this node included; `uplink` is what it was seen to carry,
    `limit_rate` what the user allows all of them together, both in bytes a second, None if unknown or unlimited.
    `meets` says that this node and others are believed to reach each other: else a swarm gets it all from us.
    """

    audience: int = 1
    uplink: float | None = None
    limit_rate: float | None = None
    offer: Offer | None = None
    meets: bool = False


ALONE = Sharing()


def estimate(  # noqa: PLR0913 - all that an estimate depends on, by name
    capabilities: Capabilities,
    *,
    missing: int,
    size: int,
    link: Link,
    transport: str,
    knowledge: Knowledge,
    seen: bool = True,
    sharing: Sharing = ALONE,
) -> Estimate:
    """Reckon how long a transport takes to bring `missing` of `size` bytes over a link.

    Seconds are infinite where its unit of progress does not fit into the life of a connection;
    the note then says so. The terms add up to the seconds. Of the connections that a transport
    can use, it is reckoned with as many as pay. What this node's history says of the transport
    corrects the model, the more samples the more. `seen` is false where no probe has seen its route
    open: then most of its attempts are expected to be in vain. `sharing` says who else uses our
    line: what goes through it is shared by all of them.
    """
    if capabilities.route == "sibling":
        link = replace(link, rate=_offered(sharing), life_seconds=None, life_bytes=None)
    elif capabilities.route == "swarm" and sharing.audience > 1 and sharing.meets:
        link = replace(link, rate=sharing.uplink or link.rate)
        capabilities = replace(capabilities, overhead=capabilities.overhead * SWARM_PASS)
    alone = _by_lanes(capabilities, missing, size, link, transport, knowledge)
    if capabilities.route == "sibling":
        alone = _waited_for(alone, sharing.offer)
    elif sharing.audience > 1 and not (capabilities.route == "swarm" and sharing.meets):
        shared = _shared(link, sharing)
        slower = _by_lanes(capabilities, missing, size, shared, transport, knowledge)
        more = slower.seconds - alone.seconds
        if math.isinf(slower.seconds):
            alone = slower
        elif more > 0:
            alone = _sum([*alone.terms, (f"shared by {sharing.audience}", more)], alone.note)
    return _doubted(alone, seen=seen)


def _offered(sharing: Sharing) -> float:
    return (sharing.offer.rate if sharing.offer is not None else None) or SIBLING_RATE


def _waited_for(alone: Estimate, offer: Offer | None) -> Estimate:
    """Add the time until the giver has all of it: what it has is pulled as it comes."""
    wait = max(0.0, (offer.remaining if offer is not None else 0.0) - alone.seconds)
    if offer is None or offer.giver is None or not wait:
        return alone
    return _sum([*alone.terms, (f"until {offer.giver} has all of it", wait)], alone.note)


def _shared(link: Link, sharing: Sharing) -> Link:
    """Give a link with no more than its share of our line, and of what is allowed."""
    uplink = sharing.uplink or (UNKNOWN_RATE if link.rate else None)
    parts = [part / sharing.audience for part in (uplink, sharing.limit_rate) if part is not None]
    return replace(link, share=min(parts, default=None), sharers=1 if uplink else sharing.audience)


def _by_lanes(  # noqa: PLR0913, PLR0917 - as estimate() has them
    capabilities: Capabilities, missing: int, size: int, link: Link, transport: str, knowledge: Knowledge
) -> Estimate:
    """Reckon with as many connections as pay, and correct by history."""
    streams = max(1, min(capabilities.streams, MAX_STREAMS))
    choices = [
        _reckon(capabilities, missing, size, link, _pipe(capabilities, link, lanes, missing))
        for lanes in range(1, streams + 1)
    ]
    best = min(choice.seconds for choice in choices)
    model = next(choice for choice in choices if choice.seconds <= best * (1 + WORTHWHILE))
    return _corrected(model, missing, transport, knowledge, link)


# --- the model ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pipe:
    """So many connections to a node: seconds to open one, bytes a second of one and of all."""

    lanes: int
    connect: float
    alone: float
    total: float

    @property
    def share(self) -> float:
        """Bytes a second of one connection while all of them send."""
        return self.total / self.lanes


def _pipe(capabilities: Capabilities, link: Link, lanes: int, missing: int) -> _Pipe:
    over_ssh = capabilities.route == "ssh"
    ceilings = {"ssh": SSH_CEILING, "swarm": SWARM_CEILING}
    ceiling = capabilities.ceiling or ceilings.get(capabilities.route, DIRECT_CEILING)
    window = SSH_WINDOW if over_ssh else TCP_WINDOW
    bound = window / link.rtt if link.rtt > 0 else math.inf
    rates = [rate / link.sharers for rate in ((link.rate,) if link.rate else UNKNOWN_RATES)]
    lines = [min(rate, link.limit_rate or math.inf, link.share or math.inf, ceiling) for rate in rates]
    alone = _mean(min(line, bound) for line in lines)
    total = _mean(min(line, bound * lanes) for line in lines)
    round_trips = 1 + max(0.0, capabilities.setup) + _slow_start(min(total * link.rtt, missing) / lanes)
    login = link.login + (0.0 if over_ssh else START_SECONDS)
    return _Pipe(lanes, round_trips * link.rtt + login, alone, total)


def _mean(rates: Iterable[float]) -> float:
    """Give the rate at which a file takes as long as it is expected to, over rates that are equally likely."""
    each = list(rates)
    return len(each) / sum(1 / rate for rate in each)


def _slow_start(in_flight: float) -> float:
    """Count the round trips in which TCP doubles its window up to what the line holds."""
    return math.log2(max(1.0, in_flight / FIRST_WINDOW))


def _reckon(capabilities: Capabilities, missing: int, size: int, link: Link, pipe: _Pipe) -> Estimate:
    overhead = max(1.0, capabilities.overhead)
    if missing <= 0:
        return _sum([("connect", pipe.connect)], "nothing is missing")
    if capabilities.resume == "exact":
        return _exact(missing * overhead, link, pipe)
    if capabilities.resume == "rescan":
        return _rescan(missing, max(size, missing), overhead, link, pipe)
    whole = missing if capabilities.ranges else max(size, missing)
    return _in_one_life(whole * overhead, link, pipe)


def _exact(amount: float, link: Link, pipe: _Pipe) -> Estimate:
    """Continue where it stopped: a lost connection costs its login and what was under way."""
    cost = format_seconds(pipe.connect)
    gross = _cargo(link, pipe)
    lost = _lost(gross)
    if gross - lost < FRAME:
        # Age and bytes describe the same lives from two sides. The smaller is prudent; that a
        # connection cannot even carry a frame is only believed when both say so.
        gross = _cargo(link, pipe, prudent=False)
        lost = _lost(gross)
    if gross - lost < FRAME:
        return _never(
            amount,
            pipe,
            f"{_lives(link)}: too short to log in ({cost}) and bring over even {format_size(FRAME)}",
        )
    send = amount / pipe.total
    spare = pipe.lanes * gross  # what the first connections carry before they are lost
    losses = 0 if amount <= spare else math.ceil((amount - spare) / (gross - lost))
    wire = amount + losses * lost
    wait = (losses * pipe.connect + wire / pipe.alone) / pipe.lanes - wire / pipe.total
    terms = [("connect", pipe.connect), ("send", send)]
    note = "sends over one connection"
    if pipe.lanes > 1:
        note = f"sends over up to {pipe.lanes} connections at once"
    if losses:
        overlap = ", overlapping" if pipe.lanes > 1 else ""
        terms += [
            ("sent twice", losses * lost / pipe.total),
            (f"{losses} reconnects of {cost}{overlap}", max(0.0, wait)),
        ]
    if math.isfinite(gross):
        note += f"; each lost connection costs {cost}"
    return _sum(terms, note)


def _rescan(missing: int, size: int, overhead: float, link: Link, pipe: _Pipe) -> Estimate:
    """Reread what is there at the start of each life, then go on."""
    left, losses, reread, again = missing * overhead, 0, 0.0, 0.0
    while True:
        present = max(0.0, size - left / overhead)
        pause = present / REREAD_RATE
        late = _Pipe(pipe.lanes, pipe.connect + pause, pipe.alone, pipe.total)
        gross = _cargo(link, late) * pipe.lanes
        if left <= gross and not _livelocked(link, pipe, pause):
            break
        lost = _lost(gross)
        if gross - lost < FRAME or _livelocked(link, pipe, pause):
            return _never(
                missing * overhead,
                pipe,
                f"after each lost connection it rereads what has arrived; with"
                f" {format_size(present)} there that takes {format_seconds(pause)}, and"
                f" {_lives(link)}: it would go round in circles",
            )
        # Many lives differ little from one to the next: take them a 64th of the rest at a time.
        batch = max(1, int(left / (gross - lost) / 64))
        left -= batch * (gross - lost)
        losses += batch
        reread += batch * pause
        again += batch * lost / pipe.total
    terms = [("connect", pipe.connect), ("send", missing * overhead / pipe.total)]
    if reread + pause > 0:
        terms.append(("reread", reread + pause))
    if losses:
        terms += [
            ("sent twice", again),
            (f"{losses} reconnects of {format_seconds(pipe.connect)}", losses * pipe.connect),
        ]
    note = "continues after a lost connection, once it has reread what is there"
    if losses:
        note += f"; each costs {format_seconds(pipe.connect + reread / losses)}"
    return _sum(terms, note)


def _livelocked(link: Link, pipe: _Pipe, pause: float) -> bool:
    if link.life_seconds is None or pause <= 0:
        return False
    return pause > LIVELOCK_SHARE * (link.life_seconds - pipe.connect)


def _in_one_life(amount: float, link: Link, pipe: _Pipe) -> Estimate:
    """Start over after each loss: the whole has to fit into the life of one connection."""
    need = pipe.connect + amount / pipe.total
    chance = _fits(need, link.life_seconds) * _fits(amount / pipe.lanes, link.life_bytes)
    chance **= pipe.lanes
    if chance <= 0:
        return _never(
            amount,
            pipe,
            f"it starts over after each lost connection; {format_size(amount)} need"
            f" {format_seconds(need)} in one piece, and {_lives(link)}",
        )
    terms = [("connect", pipe.connect), ("send", amount / pipe.total)]
    note = "sends the whole file in one go"
    if chance < 1:
        tries = 1 / chance - 1
        terms.append((f"{tries:.1f} tries in vain", tries * need))
        note += f"; of 100 tries about {chance * 100:.0f} should get through"
    return _sum(terms, note)


def _fits(need: float, life: float | None) -> float:
    """Tell how likely a connection lives long enough: lives spread evenly around `life`."""
    if life is None:
        return 1.0
    if life <= 0:
        return 0.0
    return min(1.0, max(0.0, (1 + LIFE_SPREAD - need / life) / (2 * LIFE_SPREAD)))


def _cargo(link: Link, pipe: _Pipe, *, prudent: bool = True) -> float:
    """Tell how many bytes one connection carries in its life, infinite where it is not cut.

    Where both its age and its bytes are bounded: the less of the two, or the more if not prudent.
    """
    bounds: list[float] = []
    if link.life_bytes is not None:
        bounds.append(link.life_bytes)
    if link.life_seconds is not None:
        bounds.append(max(0.0, link.life_seconds - pipe.connect) * pipe.share)
    return min(bounds, default=math.inf) if prudent else max(bounds, default=math.inf)


def _lost(gross: float) -> float:
    return min(float(IN_FLIGHT), gross * IN_FLIGHT_SHARE)


# --- correction by history ------------------------------------------------------------------


def _corrected(model: Estimate, missing: int, transport: str, knowledge: Knowledge, link: Link) -> Estimate:
    if knowledge.samples <= 0 or missing <= 0 or math.isinf(model.seconds):
        return model
    terms, seconds = list(model.terms), model.seconds
    connect = terms[0][1]
    rate = settled_rate(knowledge, transport, connect)
    rest = seconds - connect
    if rate is not None and rest > 0:
        observed = missing / min(rate / link.sharers, link.share or math.inf)
        blended = blend(rest, observed, trust(knowledge))
        terms.append(("as seen here before", blended - rest))
        seconds = connect + blended
    share = knowledge.success.get(transport)
    if share is not None:
        share = min(1.0, max(0.0, share))
        samples = knowledge.samples
        believed = (share * samples + PRIOR_WEIGHT) / (samples + PRIOR_WEIGHT)
        if believed < 1:
            terms.append(("attempts that failed here before", seconds * (1 / believed - 1)))
    return _sum(terms, model.note)


def _doubted(expected: Estimate, *, seen: bool) -> Estimate:
    """Add what attempts in vain are expected to cost, where nobody has seen the route open."""
    if seen or math.isinf(expected.seconds):
        return expected
    vain = expected.seconds * (1 / UNSEEN_ROUTE - 1)
    return _sum([*expected.terms, ("its port was not seen open, and most are not", vain)], expected.note)


# --- words ----------------------------------------------------------------------------------


def _sum(terms: Iterable[tuple[str, float]], note: str) -> Estimate:
    terms = tuple(terms)
    return Estimate(sum(seconds for _, seconds in terms), terms, note)


def _never(amount: float, pipe: _Pipe, note: str) -> Estimate:
    terms = (("connect", pipe.connect), ("send", amount / pipe.total))
    return Estimate(math.inf, terms, note)


def _lives(link: Link) -> str:
    parts = []
    if link.life_seconds is not None:
        parts.append(f"live about {format_seconds(link.life_seconds)}")
    if link.life_bytes is not None:
        parts.append(f"carry about {format_size(link.life_bytes)}")
    return f"connections to this node {' and '.join(parts) or 'do not last'}"
