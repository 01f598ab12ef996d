"""gather(): ask a node and the way to it, in one login, and beside it from our side."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rrmove import dht
from rrmove.errors import Unusable, foremost
from rrmove.events import Probed
from rrmove.probe import (
    CLEAN,
    CLIENT,
    DHT,
    PLACES,
    PORTS,
    REACH,
    RTT,
    STANDARD,
    SYSTEM,
    DHTState,
    Facts,
    PortState,
    Probe,
    describe,
)

if TYPE_CHECKING:
    from rrmove.events import Emit, Event
    from rrmove.session import Lane, Session

EVERY_BYTE = bytes(range(256))
SAMPLES = 3  # round trips timed while snippets run; the smallest counts, the others had to wait
# A port that is silent for four round trips is filtered; the floor covers a busy machine's jitter.
SILENCE, ROUNDS = 0.3, 4
# Without grace, the node's way to us may cost this much once it has been asked: the question, its
# connect to us and the answer take two round trips. Behind a NAT there never is an answer.
REACH_LEAST, REACH_ROUNDS, REACH_MOST = 0.05, 2.5, 0.25
ACCEPT_WITHIN = 0.02  # seconds; the connection set out for us before the answer that tells of it
REACH_TIMEOUT = 1.0  # seconds that the node tries to connect
# A snippet may take 3 s, and an agent may run them one after the other. What has not been
# answered by then stays unknown: a move does not wait for a hung file system.
ANSWERS_WITHIN = 10.0
LAST_PORT = 65535
TCP = socket.SOCK_STREAM

_STATES: Mapping[int | None, PortState] = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "refused",
    errno.ETIMEDOUT: "filtered",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EADDRNOTAVAIL: "unreachable",
    errno.EACCES: "unreachable",  # ICMP "administratively prohibited", on some systems
    errno.EPERM: "unreachable",  # our own packet filter
}
_BEST: tuple[PortState, ...] = ("open", "refused", "filtered", "unreachable")


@dataclass(slots=True)
class _View:
    """What has been seen so far; times are the loop's, in seconds.

    A port stands as filtered and the DHT as silent from the first knock until they say something.
    `hosts` are the addresses that are knocked at, `host` is SSH's.
    """

    begun: float
    host: str | None
    hosts: Mapping[str, int | None]
    answers: dict[str, str] = field(default_factory=dict)
    trips: list[float] = field(default_factory=list)
    clean: bool | None = None
    python: str = ""
    knocked: dict[str, float] = field(default_factory=dict)
    ports: dict[tuple[str, int, int], PortState] = field(default_factory=dict)  # by host, port and family
    dht: DHTState | None = None
    reach: str | None = None
    reach_asked: float | None = None

    @property
    def rtt(self) -> float:
        return min(self.trips, default=0.0)

    @property
    def silence(self) -> float:
        return max(SILENCE, ROUNDS * self.rtt)

    def reach_due(self, grace: float | None) -> float:
        """Tell until when to wait for the node's way to us, as far as is known now."""
        if grace is None:
            if self.reach_asked is None:
                return self.begun + REACH_MOST
            needed = REACH_ROUNDS * self.rtt  # on a long way more than it is worth: it stays unknown
            return self.reach_asked + (max(REACH_LEAST, needed) if needed <= REACH_MOST else 0.0)
        asked = self.begun if self.reach_asked is None else self.reach_asked
        return max(self.begun + grace, asked + REACH_TIMEOUT + self.silence)

    def knocks_due(self, grace: float | None) -> float:
        """Tell until when to wait for silent ports, as far as is known now."""
        knocked = min(self.knocked.values(), default=self.begun)  # who is late makes nobody wait
        return max(knocked + self.silence, self.begun + (grace or 0.0))

    def record(self, until: float) -> dict[str, str]:
        """Write the measured answers; silence that was too short by `until` is no answer."""
        answers = dict(self.answers)
        hushed = {host for host, knocked in self.knocked.items() if knocked + self.silence > until}
        states: dict[int, PortState] = {}
        places: dict[tuple[int, str], PortState] = {}
        for state in reversed(_BEST):
            said = [(host, port) for (host, port, _), each in self.ports.items() if each == state]
            heard = [(host, port) for host, port in said if not (state == "filtered" and host in hushed)]
            states.update({port: state for _, port in heard})
            places.update({(port, host): state for host, port in heard})
        if states:
            answers[PORTS.name] = "\n".join(f"{port} {states[port]}" for port in sorted(states))
        if states and self.hosts.keys() - {self.host}:
            found = [(port, host) for port in sorted(states) for host in self.hosts if (port, host) in places]
            answers[PLACES.name] = "\n".join(f"{port} {places[port, host]} {host}" for port, host in found)
        if self.dht and not (self.host in hushed and self.dht == "silent"):
            answers[DHT.name] = self.dht
        if self.trips:
            answers[RTT.name] = f"{self.rtt:.6f}"
        if self.clean is not None:
            answers[CLEAN.name] = "yes" if self.clean else "no"
        if self.reach is not None:
            answers[REACH.name] = self.reach
        if self.python and SYSTEM.name in answers:
            answers[SYSTEM.name] += f"\npython={self.python}\n"
        return answers


def _unheard(_event: Event) -> None:
    pass


async def gather(  # noqa: PLR0913  two that everyone gives, the rest by name
    session: Session,
    probes: Iterable[Probe[Any]] = STANDARD,
    *,
    address: tuple[str, int] | None,
    ports: Iterable[int],
    grace: float | None,
    elsewhere: Iterable[tuple[str, int | None]] = (),
    emit: Emit = _unheard,
) -> Facts:
    """Find out what is to be known about a node.

    One login asks all snippets at once; meanwhile `ports` and the torrent port's DHT are tried at
    `address`: host and SSH port, None where there is no direct way. (SSH's own port is not
    knocked at, as sshd punishes bare connects: the login shows that it is open.) `elsewhere` are the
    node's further addresses, with SSH's port there where it is known: the ports are tried at all of them
    at once, under the same rules; who is found there need not be the node, so that nothing else is
    asked or timed there.

    `grace` is how many seconds from the start silence may last before it is a fact. None means
    as little as tells something: 0.3 s or four round trips from the first knock, which a cold
    login has used up by itself. The node's way to us then has 2.5 round trips from when it is
    asked, at least 0.05 s (the snippets take that long anyway), and none where that would be more
    than 0.25 s; unanswered it stays unknown. With a grace it has its full second, and is asked for even if REACH is not
    among the probes.

    What could not be asked or was not answered is missing from the facts. Raises what the login
    raises: Fatal, Transient. A repeat asks everything again. Cancelled, it leaves nothing open.
    Publishes one Probed event.
    """
    wanted = {probe.name: probe for probe in probes}
    begun = time.monotonic()
    try:
        hosts: dict[str, int | None] = dict([address] if address is not None else [])
        hosts |= {host: port for host, port in elsewhere if host not in hosts}
        view = _View(asyncio.get_running_loop().time(), address[0] if address is not None else None, hosts)
        answers = await _gather(session, view, wanted, ports, grace)
    except BaseExceptionGroup as group:
        error = foremost(group)
        raise error from error.__cause__
    facts = Facts(MappingProxyType(answers), time.time())
    emit(Probed(session.node.name, describe(facts), time.monotonic() - begun))
    return facts


async def _gather(
    session: Session,
    view: _View,
    wanted: Mapping[str, Probe[Any]],
    ports: Iterable[int],
    grace: float | None,
) -> dict[str, str]:
    now = asyncio.get_running_loop().time
    asks = {name: _words(probe, grace) for name, probe in wanted.items() if probe.ask is not None}
    knocks = {port for port in ports if 0 < port <= LAST_PORT and PORTS.name in wanted}
    looking = reaching = None
    async with asyncio.TaskGroup() as group:
        if view.hosts:
            torrent = session.node.ports.torrent if DHT.name in wanted else None
            looking = group.create_task(_look(view, knocks, torrent))
        lane = await session.control()
        if grace is not None or REACH.name in wanted:
            reaching = group.create_task(_reach(view, lane))
        asking = group.create_task(_ask(view, lane, asks))
        await _feel(view, lane, asking)
        answered = now() + ANSWERS_WITHIN
        await _until(lambda: answered, asking)
        ssh_port = view.hosts.get(view.host or "")
        if ssh_port in knocks:
            view.ports[view.host or "", ssh_port, 0] = "open"
        await _until(lambda: view.reach_due(grace), reaching)
        await _until(lambda: view.knocks_due(grace), looking)
        judged = now()
    return view.record(judged)


def _words(probe: Probe[Any], grace: float | None) -> str | None:
    """Choose what to ask: in brief where somebody waits."""
    return probe.brief if grace is None and probe.brief is not None else probe.ask


async def _until(due: Callable[[], float], task: asyncio.Task[None] | None) -> None:
    """Wait for a task until it is due, which may change meanwhile; it does not outlive this."""
    now = asyncio.get_running_loop().time
    while task is not None and not task.done():
        left = due() - now()
        if left <= 0:
            task.cancel()
            return
        await asyncio.wait({task}, timeout=left)


# Over the login


async def _ask(view: _View, lane: Lane, asks: Mapping[str, str | None]) -> None:
    if not asks:
        return
    try:
        reply = await lane.call("probe", asks=dict(asks))
    except Unusable:
        return  # this agent asks nothing: all of it stays unknown
    outputs = reply.fields.get("outputs")
    for name, text in outputs.items() if isinstance(outputs, Mapping) else ():
        if name in asks and isinstance(text, str):
            # Bytes that are no UTF-8 come as lone surrogates, which no file or terminal takes.
            view.answers[name] = text.encode("utf-8", "replace").decode()


async def _feel(view: _View, lane: Lane, asking: asyncio.Task[None]) -> None:
    """Check that the channel is clean, and time round trips for as long as snippets run.

    The first call may have to wait for the login, so that it is not timed; one is in any case.
    """
    now = asyncio.get_running_loop().time
    try:
        reply = await lane.call("hello", EVERY_BYTE)
        # On a lane of text all bytes survive, as the connection below never sees them.
        whole = reply.fields.get("clean") is True and reply.body == EVERY_BYTE
        view.clean = whole and not getattr(lane, "text", False)
        view.python = "".join(str(reply.fields.get("python", "")).split())
        # A lane that saw its TCP handshake knows the round trip already, and nobody has to wait for one.
        seen = getattr(lane, "handshake", None)
        if seen is not None:
            view.trips.append(seen)
        while not view.trips or (len(view.trips) < SAMPLES and not asking.done()):
            begun = now()
            await lane.call("hello")
            view.trips.append(now() - begun)
    except Unusable:
        return  # this agent has no such greeting


async def _reach(view: _View, lane: Lane) -> None:
    """Listen for a moment and have the node connect to us."""
    # Asked by itself, this is answered while the slower snippets still run.
    await _ask(view, lane, {CLIENT.name: CLIENT.ask})
    client = Facts(view.answers).get(CLIENT)
    if client is None:
        return
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in client.host else socket.AF_INET
    try:
        listener = socket.create_server(("", 0), family=family)
    except OSError:
        return  # our own trouble: no such family, no descriptors
    with listener:
        listener.settimeout(0)
        port = listener.getsockname()[1]
        view.reach_asked = loop.time()
        try:
            reply = await lane.call("reach", host=client.host, port=port, timeout=REACH_TIMEOUT)
        except Unusable:
            return
        state = reply.fields.get("state")
        if state == "open":
            # What accepts on the way in our name (a proxy, another machine behind our NAT) is
            # not us: only a connection that came in here counts.
            try:
                async with asyncio.timeout(ACCEPT_WITHIN):
                    (await loop.sock_accept(listener))[0].close()
            except TimeoutError:
                state = "filtered"
        view.reach = state if isinstance(state, str) else None


# From our side


async def _look(view: _View, ports: Collection[int], torrent: int | None) -> None:
    """Knock at all ports of all addresses at once. Ends when all have answered, or when it is cancelled."""
    async with asyncio.TaskGroup() as group:
        for host in view.hosts:
            group.create_task(_look_at(view, host, ports, torrent if host == view.host else None))


async def _look_at(view: _View, host: str, ports: Collection[int], torrent: int | None) -> None:
    loop, ssh_port = asyncio.get_running_loop(), view.hosts[host]
    try:
        found = await _resolve(host)
    except (OSError, UnicodeError):
        if host != view.host:  # else it is a name that only ssh can resolve
            view.ports |= {(host, port, 0): "unreachable" for port in ports}
        return
    places = {family: place for family, _, _, _, place in reversed(found)}  # the first of each
    view.knocked[host] = loop.time()
    async with asyncio.TaskGroup() as group:
        for family, (number, _, *scope) in places.items():
            for port in ports:
                if port != ssh_port:
                    group.create_task(_knock(view, host, family, (number, port, *scope)))
        if torrent is not None:
            group.create_task(_ping(view, host, torrent))


async def _resolve(host: str) -> list[tuple[Any, ...]]:
    """Look up a host. A number takes no thread and no time."""
    loop = asyncio.get_running_loop()
    try:
        return [*socket.getaddrinfo(host, None, type=TCP, flags=socket.AI_NUMERICHOST)]
    except OSError:
        return [*await loop.getaddrinfo(host, None, type=TCP)]


async def _knock(view: _View, host: str, family: int, place: tuple[Any, ...]) -> None:
    loop = asyncio.get_running_loop()
    key = (host, place[1], family)
    view.ports[key] = "filtered"
    begun = loop.time()
    try:
        with socket.socket(family, TCP) as knock:
            knock.settimeout(0)
            await loop.sock_connect(knock, place)
        view.ports[key] = "open"
        # A refusal may come from a packet filter close by; whoever accepts where SSH is, is taken for the node.
        if host == view.host:
            view.trips.append(loop.time() - begun)
    except OSError as error:
        if error.errno in _STATES:
            view.ports[key] = _STATES[error.errno]
        else:
            del view.ports[key]  # our own trouble says nothing about the node


async def _ping(view: _View, host: str, port: int) -> None:
    view.dht = "silent"
    try:
        view.dht = await dht.ping(host, port, ANSWERS_WITHIN)
    except OSError:
        view.dht = None  # it could not even be sent
