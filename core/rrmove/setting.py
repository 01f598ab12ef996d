"""The setting of one move: everything it needs from its surroundings, opened and closed together."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rrmove.common import Common
from rrmove.discovery import discover
from rrmove.errors import UsageError
from rrmove.estimate import THROUGH_US
from rrmove.events import Reached
from rrmove.experience import Experience
from rrmove.gather import gather
from rrmove.inventory import load_inventory
from rrmove.model import Node, Request, Source
from rrmove.plugin_settings import settled
from rrmove.probe import ADDRESS, CLEAN, DHT, PLACES, PORTS, RTT, SYSTEM, TOOLS, Probe
from rrmove.reaching import addresses_of
from rrmove.retry import persistently
from rrmove.ssh.config import BULK, fast_ciphers
from rrmove.ssh.login import SSHSession
from rrmove.unended import strangers_last, unended

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

    from rrmove.discovery import Registry
    from rrmove.events import Event
    from rrmove.inventory import Inventory
    from rrmove.knowledge import Knowledge, Life
    from rrmove.limits.bucket import TokenBucket
    from rrmove.model import Attempt, Options, Plan
    from rrmove.probe import Facts
    from rrmove.siblings.batch import Seat
    from rrmove.ssh.ahead import Begun
    from rrmove.ssh.login import Client


# What every move wants to know; transports add what they need. The node's way back to us takes
# up to a quarter of a second to find out, so it is asked only for who needs it.
ALWAYS: tuple[Probe[Any], ...] = (TOOLS, SYSTEM, PORTS, RTT, CLEAN)

PATIENT = 1.0  # s that what does not answer is given where a plan is all that is asked for, or refusals are looked over

LONG = 0.06  # s of round trip from which on logins take so long that several at once are worth their processor time
PER_LANE = 0.012  # s of round trip that one more lane pays for, see the chunked transport
LEAST_LOAD = 8 << 20  # bytes that a lane should have to carry
AHEAD = 7  # connections; with the first they are fewer than sshd's MaxStartups refuses


def node_of(target: str | Node, inventory: Inventory | None) -> tuple[Node, str]:
    """Find the one node that a target means, and the destination there. Raises UsageError."""
    if isinstance(target, Node):
        return target, target.destination or ""
    found = (inventory or load_inventory()).resolve(target)
    if len(found) != 1:
        names = ", ".join(node.name for node, _ in found)
        raise UsageError(f"{target!r} means {len(found)} nodes ({names})", remedy="Run once for each of them so far")
    return found[0]


def client_for(ssh: str) -> Client:
    """Say which SSH client the user's word means. Raises UsageError where it means none."""
    match ssh:
        case "openssh":
            return "openssh"
        case "paramiko":
            return "own"
        case "auto":
            return "auto" if shutil.which("ssh") else "own"
    raise UsageError(f"unknown ssh {ssh!r}", remedy="Choose auto, openssh or paramiko")


@asynccontextmanager
async def log_in(
    node: Node, ssh: str = "auto", begun: Begun | None = None, *, bulk: bool = False
) -> AsyncIterator[SSHSession]:
    """Open a session with the first connection begun; leaving closes them all.

    `bulk` says that so much is to be moved that it pays to look for the quickest cipher.

    `ssh` is "openssh", "paramiko", or "auto": the OpenSSH client where there is one.
    """
    client = client_for(ssh)
    more = await asyncio.to_thread(fast_ciphers, node) if bulk and client != "own" else ()
    addresses = begun.addresses if begun is not None else await asyncio.to_thread(addresses_of, node)
    async with SSHSession(node, client=client, begun=begun, more=more, addresses=addresses) as session:
        await session.control()
        yield session


async def look_at(
    session: SSHSession, probes: Iterable[Probe[Any]], *, grace: float | None, emit: Callable[[Event], None]
) -> Facts:
    """Gather facts of a session's node, over one login; `grace` as `gather()` has it."""
    node = session.node
    ports = {node.ports.data, node.ports.torrent}
    asked = tuple(probes)

    async def once() -> Facts:
        address, elsewhere = await session.address(), session.addresses.others()
        facts = await gather(session, asked, address=address, ports=ports, grace=grace, elsewhere=elsewhere, emit=emit)
        # What was knocked at must be the machine that let us in, and nowhere one that is known to be another.
        same = await session.address() == address and not set(elsewhere) - set(session.addresses.others())
        return facts if same else facts.without(PORTS, PLACES, DHT)

    facts = await persistently(once)
    told = session.addresses.told
    lines = "; ".join(f"{where}: {what}" for where, what in told.items())
    return facts.updated({ADDRESS.name: lines}) if told else facts


@dataclass(slots=True)
class Setting:
    """A request with its session, plugins, memory and limit, and what it has in common with others."""

    request: Request
    session: SSHSession
    registry: Registry
    common: Common
    experience: Experience
    limiter: TokenBucket
    on_event: Callable[[Event], None] | None
    remembered: bool = False  # whether the facts are from an earlier move

    @classmethod
    @asynccontextmanager
    async def of(  # noqa: PLR0913  what a move is made of
        cls,
        source: str | Path | Source,
        target: str | Node,
        options: Options,
        *,
        inventory: Inventory | None,
        ssh: str,
        on_event: Callable[[Event], None] | None,
        begun: Begun | None = None,
        common: Common | None = None,
    ) -> AsyncIterator[Setting]:
        """Open everything that a move needs; the login begins first, the rest is loaded meanwhile."""
        seen = source if isinstance(source, Source) else Source.of(source)
        node, destination = node_of(target, inventory)
        request = Request(source=seen, node=node, destination=destination, options=options)
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(log_in(node, ssh, begun, bulk=seen.size >= BULK))
            await asyncio.sleep(0)
            shared = common or Common(seen, options)
            limiter = shared.limiter(node)
            registry = await asyncio.to_thread(discover, extra=options.plugins)
            told = settled(registry.transports, (*node.settings, *options.settings), problems=registry.refusals)
            request = replace(request, settings=told)
            request = replace(request, node=await shared.hooks.addressed(request.node))
            session.know(request.node.addresses)
            setting = cls(request, session, registry, shared, Experience(), limiter, on_event)
            setting.tell_addresses()
            seat = shared.siblings.seat(node) if shared.siblings is not None else None
            try:
                yield setting
            finally:
                if shared.siblings is not None and seat is not None and seat.gives:
                    shared.siblings.keep(stack.pop_all())  # others still pull from there
                elif seat is not None:
                    await seat.leaves()
                if shared is not common:
                    await shared.close()

    def emit(self, event: Event) -> None:
        """Tell whoever watches."""
        if self.on_event is not None:
            self.on_event(event)
        self.common.hooks.emit(event)

    def tell_addresses(self) -> None:
        """Tell, from now on, which of several addresses is used."""
        loop, addresses, told = asyncio.get_running_loop(), self.session.addresses, Reached("", None, {})

        def tell() -> None:
            nonlocal told
            used = addresses.used
            event = Reached(self.request.node.name, used.shown if used else None, addresses.told)
            if event != told:
                told = event
                self.emit(event)

        def changed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the move is over
                loop.call_soon_threadsafe(tell)

        addresses.watch(changed)

    async def facts(self, *, fresh: bool = False) -> Facts:
        """Give the node's facts: known ones that are young enough, else gathered anew."""
        name = self.request.node.name
        known = None if fresh else self.experience.known_facts(name, time.time())
        # Where the node has got another address since, nobody has looked there.
        asked = {host for host, _ in self.session.addresses.others(last=True)}
        if known is not None and asked <= {host for each in (known.get(PLACES) or {}).values() for host in each}:
            self.remembered = True
            return known
        needs = {probe.name: probe for each in self.registry.needs.values() for probe in each}
        probes = {probe.name: probe for probe in ALWAYS} | needs
        self.remembered = False
        grace = PATIENT if fresh else None  # where nobody waits for bytes, silence may become a fact
        facts = await look_at(self.session, probes.values(), grace=grace, emit=self.emit)
        self.experience.remember_facts(name, facts)
        return facts

    async def begin_lanes(self) -> None:
        """Begin connections ahead where the way is long and the file large: logins take 12 round trips.

        Nothing is decided by that; a transport that uses one connection leaves them alone.
        """
        options, size = self.request.options, self.request.source.size
        able = {
            name
            for name, transport in self.registry.transports.items()
            if transport.capabilities.route == "ssh" and transport.capabilities.streams > 1
        }
        chosen = (able & set(options.only) if options.only else able) - set(options.without)
        if not chosen or size < BULK:
            return
        rtt = self.experience.knowledge(self.request.node.name, time.time()).rtt or await self.session.handshake()
        if rtt is not None and rtt >= LONG:
            await self.session.begin(int(min(AHEAD, size // LEAST_LOAD, rtt / PER_LANE)))

    def forget_facts(self) -> None:
        """Drop what was known of the node: an attempt has contradicted it."""
        self.experience.forget_facts(self.request.node.name)

    async def prepare(self) -> None:
        """Let hooks make the source ready before it is read. Raises RejectedError."""
        self.request = replace(self.request, source=await self.common.prepared())

    @property
    def seat(self) -> Seat | None:
        """This node's place among those that get the same file; None where it is alone."""
        siblings = self.common.siblings
        return None if siblings is None else siblings.seat(self.request.node)

    def uplink(self) -> float | None:
        """Give the most that any move was seen to send from here, in bytes a second; None where none was."""
        through = {name for name, each in self.registry.transports.items() if each.capabilities.route in THROUGH_US}
        return self.experience.uplink(time.time(), through)

    def _passed_on(self, attempt: Attempt) -> bool:
        transport = self.registry.transports.get(attempt.transport)
        return transport is not None and transport.capabilities.route == "sibling"

    def knowledge(self) -> Knowledge:
        """Give what former moves to this node taught."""
        return self.experience.knowledge(self.request.node.name, time.time())

    def adjusted(self, facts: Facts, plan: Plan) -> Plan:
        """Put strangers last that may have ended a program, and let hooks adjust a plan."""
        suspects = {name: began for name, began in unended().items() if name not in self.registry.own}
        return self.common.hooks.adjust(self.request, facts, strangers_last(plan, suspects))

    def remember(self, attempt: Attempt, missing: int, plan: Plan, facts: Facts, lives: Sequence[Life]) -> None:
        """Note what came of an attempt, for the next estimates."""
        step = next((step for step in plan.steps if step.transport == attempt.transport), None)
        self.experience.record(
            self.request.node.name,
            attempt,
            size=missing,
            predicted=step.estimate.seconds if step else None,
            rtt=facts.get(RTT),
            lives=lives,
            # Neither says what the way from here carries: who shares it, and who does not use it.
            limited=self.limiter.rate is not None or self.request.audience > 1 or self._passed_on(attempt),
        )


__all__ = ["Setting", "log_in", "look_at", "node_of"]
