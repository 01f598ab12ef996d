"""What goes wrong between a client and an embedded node: the faults by name, and the relay that inflicts them."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

End = Literal["closed", "reset", "stopped"]
Age = float | tuple[float, float] | None

CHUNK = 256 * 1024  # two system calls carry this much; smaller cost throughput, larger did not gain
IN_FLIGHT = 16 * 1024 * 1024  # what one direction of a cable with latency can hold: 100 MB/s over 320 ms
LATENESS = 0.01  # seconds a sleep may overrun before the rate forgets about it


@dataclass(frozen=True, slots=True)
class Faults:
    """Say what is wrong with a node and with the way to it.

    Ages are in seconds since the connection was accepted; a pair draws one uniformly for each connection,
    from `random.Random(seed)`. Raises ValueError for a rate that is not positive or a latency below zero.
    """

    reset_after_seconds: Age = None
    """The age at which a connection gets a TCP reset."""
    reset_after_bytes: int | None = None
    """The bytes from client to node (from a web server to its client), as they are on the wire, after which a
    connection gets a TCP reset."""
    silent_after_seconds: Age = None
    """The age from which nothing is relayed in either direction; the connection stays open until the node closes."""
    refuse_logins: int = 0
    """How many connections to close before the SSH banner, as sshd's MaxStartups does, before one is served."""
    reject_auth: bool = False
    """Whether the client's public key is refused."""
    hidden_tools: frozenset[str] = frozenset()
    """Programs that PATH on the node does not lead to. A name hides its variants too (`python3` hides
    `python3.11`, and `python` where that leads to python3); `sftp-server` hides the sftp subsystem. An absolute
    path still finds them."""
    seven_bits: bool = False
    """Whether every byte above 127 that a command reads or prints has become a question mark on the way."""
    disk_bytes: int | None = None
    """What the node's home can hold. As root, at start: a tmpfs of that size (whole pages, at least one), mounted
    with private propagation and unmounted at close. Otherwise, or where mounting fails: a limit on the size of
    each file (RLIMIT_FSIZE), so a writer sees EFBIG instead of ENOSPC, and `df` tells nothing."""
    file_bytes: int | None = None
    """How large a file on the node may get (RLIMIT_FSIZE): a writer sees EFBIG, as it sees ENOSPC where the disk
    is full. Needs no root; holds for commands that are started from then on."""
    rate: float | None = None
    """Bytes a second, in each direction, shared by all connections of the node."""
    rtt: float = 0.0
    """Seconds that each round trip takes longer, the one of the TCP handshake included."""
    seed: int = 7
    """Where the random ages start from."""

    def __post_init__(self) -> None:
        """Refuse what no link can have."""
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"rate must be positive, not {self.rate}")
        if self.rtt < 0:
            raise ValueError(f"rtt must not be negative, but is {self.rtt}")


def draw(age: Age, dice: random.Random) -> float:
    """Draw one connection's age, in seconds; infinite where there is none."""
    if age is None:
        return math.inf
    return dice.uniform(*age) if isinstance(age, tuple) else age


class Pace:
    """Share one rate among all who reserve from it, in the order of their asking."""

    def __init__(self, rate: float | None) -> None:
        """Pass `rate` bytes a second, or everything at once where it is None."""
        self._rate = rate
        self._free = 0.0
        self._lock = threading.Lock()

    @property
    def chunk(self) -> int:
        """Tell how many bytes to reserve at a time: about 20 ms of them."""
        return CHUNK if self._rate is None else max(1024, min(CHUNK, int(self._rate / 50)))

    def reserve(self, size: int, now: float) -> float:
        """Reserve the passage of `size` bytes and tell when, in monotonic seconds, they are through."""
        if self._rate is None:
            return now
        with self._lock:
            self._free = max(self._free, now - LATENESS) + size / self._rate
            return self._free


class _Flow:
    """One direction of a connection: what was read, and when each piece of it is due at the other end."""

    def __init__(self, source: socket.socket, sink: socket.socket, pace: Pace, delay: float, opens: float) -> None:
        self.source, self.sink = source, sink
        self.ended = False  # the source has said all it had to say
        self.blocked = False  # the sink takes no more at the moment
        self._pace, self._delay, self._opens = pace, delay, opens
        self._held: deque[tuple[float, memoryview]] = deque()
        self._size = 0

    @property
    def drained(self) -> bool:
        return self.ended and not self._held

    def wants(self, now: float) -> bool:
        """Tell whether to read from the source now."""
        return not self.ended and now >= self._opens and self._size < IN_FLIGHT

    def next_event(self, now: float) -> float:
        """Tell when, in monotonic seconds, this direction has something to do without being told by a socket."""
        due = self._held[0][0] if self._held and not self.blocked else math.inf
        opens = self._opens if self._opens > now and not self.ended else math.inf
        return min(due, opens)

    def read(self, now: float) -> None:
        """Read one chunk; raises OSError when the source is gone."""
        try:
            data = self.source.recv(self._pace.chunk)
        except BlockingIOError:
            return
        if data:
            self._opens = self._pace.reserve(len(data), now)
            self._held.append((self._opens + self._delay, memoryview(data)))
            self._size += len(data)
        else:
            self.ended = True

    def deliver(self, now: float, most: float) -> int:
        """Deliver what is due, at most `most` bytes, and tell how many; raises OSError when the sink is gone."""
        delivered = 0
        self.blocked = False
        while self._held and self._held[0][0] <= now and delivered < most:
            due, data = self._held[0]
            allowed = data[: int(min(len(data), most - delivered))]
            try:
                sent = self.sink.send(allowed)
            except BlockingIOError:
                self.blocked = True
                break
            delivered += sent
            if sent == len(data):
                self._held.popleft()
            else:
                self._held[0] = (due, data[sent:])
        self._size -= delivered
        return delivered


class Relay:
    """Carry one connection between its client and the node, and break it as its faults say."""

    def __init__(  # noqa: PLR0913 - two ends, what befalls them, and who wants to know
        self,
        client: socket.socket,
        node: socket.socket,
        *,
        faults: Faults,
        ages: tuple[float, float],
        paces: tuple[Pace, Pace],
        carried: Callable[[int], None],
        cut: Callable[[], None],
        downwards: bool = False,
    ) -> None:
        """Join `client` to `node`: `ages` of reset and silence in seconds, `paces` up and down.

        `carried` is called with each number of bytes that went up (down, where `downwards` says that this
        is the way that counts), `cut` before the client can see a reset.
        """
        born = time.monotonic()
        self._client, self._node, self._carried = client, node, carried
        self._cut = cut
        self._reset_at, self._silent_at = born + ages[0], born + ages[1]
        self._left = math.inf if faults.reset_after_bytes is None else faults.reset_after_bytes
        self._up = _Flow(client, node, paces[0], faults.rtt / 2, born + faults.rtt)
        self._down = _Flow(node, client, paces[1], faults.rtt / 2, born + faults.rtt)
        self._counted, self._other = (self._down, self._up) if downwards else (self._up, self._down)
        for end in (client, node):
            end.setblocking(False)

    def run(self, stop: int) -> End:
        """Relay until an end closes, a fault resets the connection, or the descriptor `stop` becomes readable.

        Both sockets are closed on return, the client's with a TCP reset where the answer is "reset".
        """
        try:
            end = self._carry(stop)
        except OSError:  # an end is gone: its peer will hear of it
            end = "closed"
        if end == "reset":
            self._cut()
            # Lingering for no time at all makes close() send RST instead of FIN.
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._client.close()
        if end != "stopped":
            self._let_go(stop)
        self._node.close()
        return end

    def _let_go(self, stop: int) -> None:
        """Let the node read what it was sent: closed with answers unread, a socket pair forgets that."""
        poll = select.poll()
        poll.register(stop, select.POLLIN)
        poll.register(self._node, select.POLLIN)
        with contextlib.suppress(OSError):
            self._node.shutdown(socket.SHUT_WR)
            while stop not in dict(poll.poll()) and self._node.recv(CHUNK):
                pass

    def _carry(self, stop: int) -> End:
        poll = select.poll()
        poll.register(stop, select.POLLIN)
        watched: dict[int, int] = {}
        while True:
            now = time.monotonic()
            if self._step(now):
                return "reset"
            if self._down.drained:
                return "closed"
            silent = now >= self._silent_at
            self._watch(poll, watched, now, silent=silent)
            wake = self._reset_at
            if not silent:
                wake = min(wake, self._silent_at, self._up.next_event(now), self._down.next_event(now))
            ready = dict(poll.poll(None if wake == math.inf else max(0.0, wake - now) * 1000))
            if stop in ready:
                return "stopped"
            now = time.monotonic()
            if now < self._silent_at:
                for flow in (self._up, self._down):
                    if flow.source.fileno() in ready and flow.wants(now):
                        flow.read(now)

    def _step(self, now: float) -> bool:
        """Deliver what is due, and tell whether the connection has to be reset."""
        if now >= self._reset_at:
            return True
        if now >= self._silent_at:
            return False
        if went := self._counted.deliver(now, self._left):
            self._left -= went
            self._carried(went)
            if self._left <= 0:
                return True
        self._other.deliver(now, math.inf)
        if self._up.drained and self._up.sink.fileno() >= 0:
            self._up.sink.shutdown(socket.SHUT_WR)
        return False

    def _watch(self, poll: select.poll, watched: dict[int, int], now: float, *, silent: bool) -> None:
        """Have `poll` watch what the two directions wait for; a socket nobody waits for would only spin."""
        masks = {self._client.fileno(): 0, self._node.fileno(): 0}
        if not silent:
            for flow in (self._up, self._down):
                masks[flow.source.fileno()] |= select.POLLIN if flow.wants(now) else 0
                masks[flow.sink.fileno()] |= select.POLLOUT if flow.blocked else 0
        for descriptor, mask in masks.items():
            if watched.get(descriptor, 0) == mask:
                continue
            if mask:
                poll.register(descriptor, mask)
            else:
                poll.unregister(descriptor)
            watched[descriptor] = mask
