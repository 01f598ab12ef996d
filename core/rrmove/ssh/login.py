"""SSHSession: a node's login, the lanes that it opens, and which kind of agent answers there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, Self

from rrmove.ssh import own
from rrmove.ssh.addresses import Addresses
from rrmove.ssh.config import argv_options, destination, direct, effective
from rrmove.ssh.dial import STAGGER
from rrmove.ssh.failures import NoPython, NotClean, NotOurs, NotTheNode
from rrmove.ssh.floor import FloorLane
from rrmove.ssh.lane import AgentLane
from rrmove.ssh.openssh import ALONE, LANE_OPTIONS, start

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from rrmove.errors import RRMoveError
    from rrmove.model import Address, Node
    from rrmove.ssh.ahead import Begun
    from rrmove.ssh.channel import Open

AnyLane = AgentLane | FloorLane
# Which client makes a connection: `ssh`, our own, or the one that suits it.
Client = Literal["openssh", "own", "auto"]


class SSHSession:
    """Logs in to a node over SSH; see `rrmove.session.Session` for the contract.

    An async context manager: leaving it closes every lane. `floor` is true once the node has
    turned out to have no python3; lanes opened from then on speak the shell floor. `text` is true
    once a connection has turned out to alter bytes; from then on all lanes are of text. `begun` is a
    connection that is under way already; it becomes the first lane's.
    `more` are further flags for ssh, `addresses` what is known of the node's, where somebody knows
    more than the node itself says.

    With `client` "auto" the first connection is made by our own client, which logs in with eight
    round trips where `ssh` takes twelve, unless ssh_config asks for what only `ssh` can do; and so
    are those that are begun ahead. All others are made by `ssh`, which carries more a second.
    """

    def __init__(  # noqa: PLR0913  one that everyone gives, the rest by name
        self,
        node: Node,
        *,
        ssh: str = "ssh",
        client: Client = "openssh",
        begun: Begun | None = None,
        more: tuple[str, ...] = (),
        addresses: Addresses | None = None,
    ) -> None:
        self._node, self._ssh, self._client, self.floor = node, ssh, client, False
        self.text = False
        self._lanes: list[AnyLane] = []
        self._ahead: list[AnyLane] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._begun, self._more = begun, more
        self.addresses = addresses or (begun.addresses if begun is not None else Addresses(node, ssh=ssh))
        self.opened = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(lane.close() for lane in self._lanes), *self._closing)
        self._lanes.clear()
        if self._begun is not None:
            self._begun.kill()

    @property
    def node(self) -> Node:
        """The node this session logs in to."""
        return self._node

    async def control(self) -> AnyLane:
        """Give a lane that is alive, the one that has answered before one that has not."""
        alive = [lane for lane in self._lanes if lane.alive]
        return next((lane for lane in alive if lane.up), alive[0] if alive else None) or await self.open_lane()

    async def handshake(self) -> float | None:
        """Wait for the first connection's TCP handshake; gives its seconds, None where it cannot be seen."""
        lane = await self.control()
        while lane.handshake is None and lane.alive and not lane.up:  # noqa: ASYNC110  a thread finds it out
            await asyncio.sleep(0.01)
        return lane.handshake

    def know(self, addresses: Iterable[Address]) -> None:
        """Take in further addresses of the node; a first connect that is in vain so far is begun anew with them."""
        if self.addresses.add(addresses) and not any(lane.up for lane in self._lanes):
            for lane in self._lanes:
                asyncio.get_running_loop().call_later(STAGGER, self._anew, lane)

    @staticmethod
    def _anew(lane: AnyLane) -> None:
        if not lane.up and lane.handshake is None:
            lane.give_up(NotTheNode("its further addresses are tried as well", node=lane.node.name))

    async def begin(self, count: int) -> None:
        """Begin so many connections ahead; `open_lane()` will give them before it begins others."""
        self._ahead += [await self._another(quickly=True) for _ in range(count)]

    async def open_lane(self, *, text: bool = False) -> AnyLane:
        """Begin one more connection and give its lane at once; with `text` only text is on the wire."""
        while self._ahead and not text:
            lane = self._ahead.pop(0)
            if lane.alive:
                return lane
        return await self._another(text=text)

    async def _another(self, *, quickly: bool = False, text: bool = False) -> AnyLane:
        for lane in [lane for lane in self._lanes if not lane.alive]:
            self._lanes.remove(lane)
            closing = asyncio.create_task(lane.close())  # it may take a moment until its threads have noticed
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        kind = FloorLane if self.floor else AgentLane
        first = self.opened == 0
        opening = self._open(alone=not first, quickly=quickly or first)
        lane = kind(opening, self._node, lost=self._lost, text=text or self.text)
        self.opened += 1
        self._lanes.append(lane)
        return lane

    def ssh_command(self) -> tuple[str, ...] | None:
        """Give the argv that runs `ssh` for this node, without the destination; None without ssh."""
        if self._client == "own":
            return None
        course = self.addresses.course()  # of several; `ssh -G` was asked by the first login
        racing = course.flags(report=False) if course is not None else ()
        return (self._ssh, *LANE_OPTIONS, *ALONE, *self._more, *racing, *argv_options(self._node))

    async def address(self) -> tuple[str, int] | None:
        """Give host and port of the node's SSH server as we reach it; None through a proxy or jump host.

        Of several addresses the one that let us in last; waits for the first to answer.
        """
        config = await effective(self._node, self._ssh)
        if config is None:  # there is no ssh to ask
            from rrmove.ssh.embedded import direct_address

            answered = self.addresses.used or self.addresses.answered
            return (
                (answered.address, answered.port) if answered else await asyncio.to_thread(direct_address, self._node)
            )
        if not direct(config):
            return None
        if self.addresses.several and await asyncio.to_thread(self.addresses.course) is not None:
            lane = await self.control()
            while self.addresses.answered is None and lane.alive and not lane.up:  # noqa: ASYNC110  threads find out
                await asyncio.sleep(0.01)
        answered = self.addresses.used or self.addresses.answered
        return (config.hostname, config.port) if answered is None else (answered.address, answered.port)

    def ssh_destination(self) -> str:
        """Give the `[user@]host` word that goes with `ssh_command()`."""
        return destination(self._node)

    def _lost(self, error: RRMoveError) -> None:
        if isinstance(error, NoPython):
            self.floor = True
        if isinstance(error, NotOurs):
            self._client = "openssh"
        if isinstance(error, NotClean):
            self.text = True

    def _open(self, *, alone: bool, quickly: bool) -> Open:
        """Say how a channel is opened; the first may share a master connection that the user keeps."""
        if self._begun is not None and not self.floor:
            begun, self._begun = self._begun, None
            return lambda _: begun.channel()
        if self._client == "own" or (self._client == "auto" and quickly):
            strict = self._client == "auto"
            return lambda command: own.start(self._node, command, strict=strict, addresses=self.addresses)
        return lambda command: start(
            self._node, command, ssh=self._ssh, alone=alone, more=self._more, addresses=self.addresses
        )
