"""The Session protocol: a login on a node, and the lanes that it opens there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rrmove.model import Node


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes to be sent straight from an open file: `length` bytes of `fd` from `offset` on."""

    fd: int
    offset: int
    length: int


Body = bytes | bytearray | memoryview | FilePart


@dataclass(frozen=True, slots=True)
class Reply:
    """What the agent answered: its fields, and raw bytes where the operation has any."""

    fields: Mapping[str, object] = field(default_factory=dict)
    body: bytes = b""


@runtime_checkable
class Lane(Protocol):
    """One connection to the node with an agent at its far end.

    Calls are answered in any order and may be made without waiting for each other. When the
    connection dies, every open call raises Transient and the lane is of no more use.
    """

    @property
    def age(self) -> float:
        """Seconds since the connection was begun."""
        ...

    @property
    def carried(self) -> int:
        """Bytes sent over it so far, the agent itself included."""
        ...

    @property
    def quiet(self) -> float:
        """Seconds since the last byte was heard from the node."""
        ...

    @property
    def alive(self) -> bool:
        """Whether calls can still be made."""
        ...

    @property
    def frame_limit(self) -> int:
        """The largest body, in bytes, that one call should carry."""
        ...

    async def ready(self) -> None:
        """Wait until the agent has answered; raises what a call would."""
        ...

    async def call(self, op: str, /, body: Body = b"", **arguments: object) -> Reply:
        """Ask the agent for one operation and wait for its answer.

        Raises Transient when the connection dies, Fatal when the node's file system or the login
        refuses, Unusable when the agent cannot do this.
        """
        ...

    async def close(self) -> None:
        """End the connection; a repeat does nothing. What was sent may still be written."""
        ...


@runtime_checkable
class Session(Protocol):
    """A login on a node: opens lanes, each a connection of its own."""

    @property
    def node(self) -> Node:
        """The node this session logs in to."""
        ...

    @property
    def floor(self) -> bool:
        """Whether the node has turned out to have no python3: a shell answers there."""
        ...

    async def control(self) -> Lane:
        """Give the lane that the core uses; connects again where it has died."""
        ...

    async def open_lane(self, *, text: bool = False) -> Lane:
        """Begin one more connection and give it at once; `ready()` tells when it is up.

        With `text` nothing but text is on the wire, whatever is called; so are all lanes where the
        connection has turned out to alter bytes.
        """
        ...

    def ssh_command(self) -> tuple[str, ...] | None:
        """Give the argv that runs `ssh` for this node, without the destination; None without ssh.

        For transports that start a program which speaks SSH itself (`rsync -e`).
        """
        ...

    async def address(self) -> tuple[str, int] | None:
        """Give host and port of the node's SSH server as we reach it; None through a proxy or jump host."""
        ...

    def ssh_destination(self) -> str:
        """Give the `[user@]host` word that goes with `ssh_command()`."""
        ...
