"""SSHSession: a node's login, the lanes that it opens, and which kind of agent answers there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from rrmove.ssh.config import argv_options, destination, direct, effective
from rrmove.ssh.failures import NoPython
from rrmove.ssh.floor import FloorLane
from rrmove.ssh.lane import AgentLane
from rrmove.ssh.openssh import ALONE, LANE_OPTIONS, start

if TYPE_CHECKING:
    from types import TracebackType

    from rrmove.errors import RRMoveError
    from rrmove.model import Node
    from rrmove.ssh.channel import Channel, Open

AnyLane = AgentLane | FloorLane


class SSHSession:
    """Logs in to a node over SSH; see `rrmove.session.Session` for the contract.

    An async context manager: leaving it closes every lane. `floor` is true once the node has
    turned out to have no python3; lanes opened from then on speak the shell floor. `begun` is a
    channel on which the agent's boot command has been started already; it becomes the first lane's.
    `more` are further flags for ssh.
    """

    def __init__(
        self,
        node: Node,
        *,
        ssh: str = "ssh",
        embedded: bool = False,
        begun: Channel | None = None,
        more: tuple[str, ...] = (),
    ) -> None:
        self._node, self._ssh, self.embedded, self.floor = node, ssh, embedded, False
        self._lanes: list[AnyLane] = []
        self._ahead: list[AnyLane] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._begun, self._more = begun, more
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

    async def begin(self, count: int) -> None:
        """Begin so many connections ahead; `open_lane()` will give them before it begins others."""
        self._ahead += [await self._another() for _ in range(count)]

    async def open_lane(self) -> AnyLane:
        """Begin one more connection and give its lane at once."""
        while self._ahead:
            lane = self._ahead.pop(0)
            if lane.alive:
                return lane
        return await self._another()

    async def _another(self) -> AnyLane:
        for lane in [lane for lane in self._lanes if not lane.alive]:
            self._lanes.remove(lane)
            closing = asyncio.create_task(lane.close())  # it may take a moment until its threads have noticed
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        kind = FloorLane if self.floor else AgentLane
        lane = kind(self._open(alone=self.opened > 0), self._node, lost=self._lost)
        self.opened += 1
        self._lanes.append(lane)
        return lane

    def ssh_command(self) -> tuple[str, ...] | None:
        """Give the argv that runs `ssh` for this node, without the destination; None without ssh."""
        if self.embedded:
            return None
        return (self._ssh, *LANE_OPTIONS, *ALONE, *self._more, *argv_options(self._node))

    async def address(self) -> tuple[str, int] | None:
        """Give host and port of the node's SSH server as we reach it; None through a proxy or jump host."""
        if self.embedded:
            from rrmove.ssh.embedded import direct_address

            return await asyncio.to_thread(direct_address, self._node)
        config = await effective(self._node, self._ssh)
        return (config.hostname, config.port) if config is not None and direct(config) else None

    def ssh_destination(self) -> str:
        """Give the `[user@]host` word that goes with `ssh_command()`."""
        return destination(self._node)

    def _lost(self, error: RRMoveError) -> None:
        if isinstance(error, NoPython):
            self.floor = True

    def _open(self, *, alone: bool) -> Open:
        """Say how a channel is opened; the first may share a master connection that the user keeps."""
        if self.embedded:
            from rrmove.ssh.embedded import open_channel

            return lambda command: open_channel(self._node, command)
        if self._begun is not None and not self.floor:
            begun, self._begun = self._begun, None
            return lambda _: begun
        return lambda command: start(self._node, command, ssh=self._ssh, alone=alone, more=self._more)
