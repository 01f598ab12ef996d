"""AgentLane: the lane with the Python agent at its far end, and how the agent gets there."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

from rrmove.session import Body, FilePart, Reply
from rrmove.ssh.armour import agent_armour
from rrmove.ssh.boot import BOOT, agent_text
from rrmove.ssh.calls import Answer, CallLane

if TYPE_CHECKING:
    from rrmove.ssh.channel import Channel

MAGIC = b"RRM1"
HEADER = struct.Struct(">4sII")


def path_among(arguments: dict[str, object], op: str) -> str:
    """Give the path that an operation is about, for error messages; the operation where it has none."""
    return next((str(arguments[key]) for key in ("part", "path", "target", "destination") if key in arguments), op)


class AgentLane(CallLane):
    """One connection with the agent at its far end; see `rrmove.session.Lane` for the contract."""

    frame_limit = 8 << 20

    async def call(self, op: str, /, body: Body = b"", **arguments: object) -> Reply:
        """Ask the agent for one operation and wait for its answer."""
        length = body.length if isinstance(body, FilePart) else len(body)

        def encode(number: int) -> bytes:
            fields = json.dumps({"op": op, "id": number, **arguments}).encode("ascii")
            return HEADER.pack(MAGIC, len(fields), length) + fields

        return await self._exchange(op, path_among(arguments, op), encode, body)

    def _start(self) -> tuple[str, bytes]:
        return BOOT, (agent_armour() if self.text else b"") + agent_text()

    def _hear(self, channel: Channel) -> Answer | None:
        head = channel.read(HEADER.size)
        if len(head) < HEADER.size:
            return None
        magic, fields_length, body_length = HEADER.unpack(head)
        if magic != MAGIC:
            raise self._mangled()
        fields = json.loads(self._take(channel, fields_length))
        body = self._take(channel, body_length)
        number, error = fields.pop("id"), fields.get("error")
        if isinstance(error, dict):
            return Answer(number, error=error)
        return Answer(number, Reply(fields, body))
