"""DHT: does anything speak BitTorrent's DHT (BEP 5) at a UDP port? Bencoding, and one ping."""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rrmove.probe import DHTState

Bencoded: TypeAlias = "int | bytes | list[Bencoded] | dict[bytes, Bencoded]"

DEPTH = 16  # a KRPC message nests three deep; the limit keeps hostile ones off Python's stack
AGAIN = 0.25  # seconds until a ping is repeated: UDP loses some, and an answer takes one RTT
_INT = re.compile(rb"i(0|-?[1-9][0-9]{0,19})e")
_LENGTH = re.compile(rb"(0|[1-9][0-9]{0,9}):")


def bencode(value: Bencoded) -> bytes:
    """Write a value in bencoding. Raises TypeError for what has no place in it."""
    if isinstance(value, bytes):
        return b"%d:%b" % (len(value), value)
    if isinstance(value, int) and not isinstance(value, bool):
        return b"i%de" % value
    if isinstance(value, list):
        return b"l%be" % b"".join(map(bencode, value))
    if isinstance(value, dict):
        return b"d%be" % b"".join(bencode(key) + bencode(value[key]) for key in sorted(value))
    raise TypeError(f"no bencoding for {type(value).__name__}")


def bdecode(data: bytes) -> Bencoded:
    """Read one bencoded value that fills `data`. Raises ValueError for everything else.

    The order of a dictionary's keys is not insisted on; of a repeated key the last one counts.
    Integers have at most 20 digits, and nesting ends at DEPTH.
    """
    value, end = _read(data, 0, DEPTH)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes too many")
    return value


def _read(data: bytes, at: int, depth: int) -> tuple[Bencoded, int]:
    if not depth:
        raise ValueError("nested too deep")
    kind = data[at : at + 1]
    if kind == b"i":
        number = _INT.match(data, at)
        if not number:
            raise ValueError(f"no integer at {at}")
        return int(number[1]), number.end()
    if kind not in {b"l", b"d"}:
        return _read_bytes(data, at)
    at += 1
    items: list[Bencoded] = []
    pairs: dict[bytes, Bencoded] = {}
    while data[at : at + 1] != b"e":
        if kind == b"d":
            key, at = _read_bytes(data, at)
            pairs[key], at = _read(data, at, depth - 1)
        else:
            item, at = _read(data, at, depth - 1)
            items.append(item)
    return (pairs if kind == b"d" else items), at + 1


def _read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    length = _LENGTH.match(data, at)
    if not length:
        raise ValueError(f"no value at {at}")
    end = length.end() + int(length[1])
    if end > len(data):
        raise ValueError(f"cut off: {end - len(data)} bytes are missing")
    return data[length.end() : end], end


def ping_query(transaction: bytes, node_id: bytes) -> bytes:
    """Write the KRPC ping; `node_id` has 20 bytes."""
    return bencode({b"t": transaction, b"y": b"q", b"q": b"ping", b"a": {b"id": node_id}})


def answers_ping(data: bytes, transaction: bytes) -> bool:
    """Tell whether a datagram answers the ping of that transaction, be it with an error."""
    try:
        message = bdecode(data)
    except ValueError:
        return False
    if not isinstance(message, dict) or message.get(b"t") != transaction:
        return False
    # A node that is too busy or dislikes the query answers with an error; it does speak DHT.
    kind = message.get(b"y")
    return (kind == b"r" and isinstance(message.get(b"r"), dict)) or kind == b"e"


class _Ping(asyncio.DatagramProtocol):
    """What comes back to one ping."""

    def __init__(self, transaction: bytes) -> None:
        self.transaction = transaction
        self.verdict: asyncio.Future[DHTState] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, _address: object) -> None:
        if answers_ping(data, self.transaction):
            self._settle("answers")

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, ConnectionRefusedError):
            self._settle("refused")

    def _settle(self, state: DHTState) -> None:
        if not self.verdict.done():
            self.verdict.set_result(state)


async def ping(host: str, port: int, within: float) -> DHTState:
    """Ask a UDP port whether a DHT node lives there.

    "refused" when its machine says that nobody listens, "silent" when nothing comes within
    `within` seconds; the query is repeated meanwhile. Raises OSError where it cannot be sent.
    """
    transaction = secrets.token_bytes(4)
    query = ping_query(transaction, secrets.token_bytes(20))
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: _Ping(transaction), remote_addr=(host, port))
    try:
        async with asyncio.timeout(within):
            while True:
                transport.sendto(query)
                done, _ = await asyncio.wait({protocol.verdict}, timeout=AGAIN)
                if done:
                    return protocol.verdict.result()
    except TimeoutError:
        return "silent"
    finally:
        transport.close()
