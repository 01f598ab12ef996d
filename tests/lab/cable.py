"""A long cable between two TAP devices: delay, rate, queue, loss, and bits that are flipped. Runs as a script."""

from __future__ import annotations

import argparse
import errno
import fcntl
import gc
import math
import os
import random
import select
import struct
import sys
import time
from collections import deque
from pathlib import Path

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_CHECKSUM_AND_TSO = 0x01 | 0x02 | 0x04

# linux/virtio_net.h: what precedes each frame: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_VNET = struct.Struct("=BBHHHH")
_GSO_TCP4 = 1
_GSO_ECN = 0x80
_IP = _VNET.size + 14
_FIN_OR_PSH = 0x01 | 0x08

_LARGEST = 65536 + 64
# A frame of 64 KiB becomes 45 packets on a real line, each with headers of its own: 14 Ethernet, 20 IP, 32 TCP
_PAYLOAD = 1448
_HEADERS = 66
# The heads of requests are shorter: they are left as they are
_SUBSTANTIAL = 1000
# How many frames are taken before those that are due are delivered
_BATCH = 256
_LONGEST_NAP = 0.0003
# The device is down or its other end is: the frame is lost, as on a line that is unplugged
_UNPLUGGED = frozenset({errno.EIO, errno.EINVAL, errno.ENETDOWN})


def open_tap(name: str) -> int:
    """Make a TAP device in our namespace, one that takes frames of up to 64 KiB, and return its descriptor."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(tap, _TUNSETOFFLOAD, _CHECKSUM_AND_TSO)
    return tap


def packets(frame: bytes) -> int:
    """Return how many packets a frame would be on a line without offloads."""
    return 1 if len(frame) <= _PAYLOAD + 100 else -(-(len(frame) - _VNET.size - _HEADERS) // _PAYLOAD)


def without(frame: bytes, lost: set[int]) -> list[bytes]:
    """Cut lost packets, given by their number, out of an offloaded frame; return what is left, as frames.

    A frame that is no IPv4 TCP frame is lost as a whole.
    """
    flags, kind, _, size, tcp, checksum = _VNET.unpack_from(frame)
    if kind & ~_GSO_ECN != _GSO_TCP4 or not size:
        return []
    tcp += _VNET.size
    start = tcp + (frame[tcp + 12] >> 4) * 4
    count = -(-(len(frame) - start) // size)
    kept = []
    first = 0
    for after in [*sorted(lost), count]:
        if first < min(after, count):
            payload = frame[start + first * size : start + min(after, count) * size]
            header = bytearray(frame[:start])
            single = len(payload) <= size
            _VNET.pack_into(
                header,
                0,
                flags,
                0 if single else kind,
                start - _VNET.size,
                0 if single else size,
                tcp - _VNET.size,
                checksum,
            )
            shorter = len(frame) - start - len(payload)
            (length,) = struct.unpack_from("!H", header, _IP + 2)
            (ip_sum,) = struct.unpack_from("!H", header, _IP + 10)
            struct.pack_into("!H", header, _IP + 2, length - shorter)
            struct.pack_into("!H", header, _IP + 10, ~_fold((~ip_sum & 0xFFFF) + (~shorter & 0xFFFF)) & 0xFFFF)
            (sequence,) = struct.unpack_from("!I", header, tcp + 4)
            struct.pack_into("!I", header, tcp + 4, (sequence + first * size) & 0xFFFFFFFF)
            # The checksum of an offloaded frame covers the pseudo header only, and there the length
            (partial,) = struct.unpack_from("!H", header, tcp + checksum)
            struct.pack_into("!H", header, tcp + checksum, _fold(partial + (~shorter & 0xFFFF)))
            if after < count:
                header[tcp + 13] &= ~_FIN_OR_PSH
            kept.append(bytes(header) + payload)
        first = after + 1
    return kept


class Flips:
    """Bits that are flipped on the way to a port, whose checksum is right all the same: what TCP does not notice."""

    def __init__(self, port: int, every: int, record: Path) -> None:
        """Flip a bit each time that so many bytes have gone to the port; `record` grows by a byte with each."""
        self._port, self._every, self._carried = port, every, 0
        self._record = record.open("ab", buffering=0)

    def done(self, frame: bytes) -> bytes:
        """Return a frame as it goes on."""
        flags, _, _, _, tcp, _ = _VNET.unpack_from(frame)
        tcp += _VNET.size
        # The checksum of an offloaded frame is made by who receives it, so that it is right whatever is in there
        if not flags & 1 or struct.unpack_from("!H", frame, tcp + 2)[0] != self._port:
            return frame
        payload = len(frame) - tcp - (frame[tcp + 12] >> 4) * 4
        self._carried += payload
        if self._carried < self._every or payload < _SUBSTANTIAL:
            return frame
        self._carried = 0
        self._record.write(b".")
        return frame[:-1] + bytes([frame[-1] ^ 1])


def _fold(total: int) -> int:
    """Return a sum in ones' complement, 16 bits."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Way:
    """One direction of the cable."""

    def __init__(
        self, source: int, sink: int, wanted: argparse.Namespace, seed: str, flips: Flips | None = None
    ) -> None:
        """Carry from `source` to `sink`, two TAP descriptors."""
        self.source = source
        self._sink = sink
        self._flips = flips
        self._delay = int(wanted.delay_us * 1000 - nap_seconds(wanted.delay_us) * 1e9)
        self._per_byte = 8e9 / wanted.rate if wanted.rate else 0.0  # nanoseconds
        self._longest_wait = int(wanted.queue * self._per_byte)
        self._loss = wanted.loss
        self._random = random.Random(seed)
        self._until_loss = self._next_loss()
        self._free_at = 0  # when the line has sent all it has been given
        self._in_flight: deque[tuple[int, bytes]] = deque()

    @property
    def due(self) -> int | None:
        """When the next frame arrives, on the monotonic clock in nanoseconds."""
        return self._in_flight[0][0] if self._in_flight else None

    def take(self) -> None:
        """Take in what the source has sent."""
        source, add = self.source, self._in_flight.append
        for _ in range(_BATCH):
            try:
                frame = os.read(source, _LARGEST)
            except BlockingIOError:
                return
            if self._flips is not None:
                frame = self._flips.done(frame)
            now = time.monotonic_ns()
            free_at = max(self._free_at, now)
            # What waits for the line counts against the queue. What is in flight has left it
            if self._per_byte and free_at - now > self._longest_wait:
                continue
            number = packets(frame)
            if self._per_byte:
                free_at += int((len(frame) + (number - 1) * _HEADERS) * self._per_byte)
                self._free_at = free_at
            due = free_at + self._delay
            if self._loss:
                for kept in self._survivors(frame, number):
                    add((due, kept))
            else:
                add((due, frame))

    def deliver(self) -> None:
        """Hand over what has arrived."""
        in_flight, sink = self._in_flight, self._sink
        now = time.monotonic_ns()
        while in_flight and in_flight[0][0] <= now:
            frame = in_flight.popleft()[1]
            try:
                os.write(sink, frame)
            except OSError as error:
                if error.errno not in _UNPLUGGED:
                    raise

    def _survivors(self, frame: bytes, number: int) -> list[bytes]:
        """Lose packets as a real line does: each by itself, not 45 at once for sharing a frame.

        TCP takes one lost packet for a hint and a lost 64 KiB for a disaster. So a lost packet is
        cut out of its frame, and what is before and after it goes on. The distance to the next
        loss is drawn at once (geometric, as independent losses are), so that frames without one
        cost nothing.
        """
        if self._until_loss >= number:
            self._until_loss -= number
            return [frame]
        lost = set()
        at = self._until_loss
        while at < number:
            lost.add(at)
            at += 1 + self._next_loss()
        self._until_loss = at - number
        return [] if len(lost) == number else without(frame, lost)

    def _next_loss(self) -> int:
        """Draw how many packets get through before one is lost."""
        if not self._loss:
            return 0
        return int(math.log(1.0 - self._random.random()) / math.log(1.0 - self._loss))


def nap_seconds(delay_us: float) -> float:
    """Return how long to let frames gather before they are looked at.

    A wake-up for every frame costs twice the processor: 48 % of a core instead of 27 % at 1 Gbit/s and 150 ms. Naps
    make frames late by one nap on average, half of it on either side, so that the delay is shorter by as much.
    """
    return min(_LONGEST_NAP, delay_us / 1e6 / 20)


def carry(ways: tuple[Way, Way], nap: float) -> None:
    """Carry frames until a device goes away. After each wait, nap so many seconds."""
    sources = [way.source for way in ways]
    # select and not epoll: its timeout is in microseconds, epoll's in milliseconds
    wait = select.select
    while True:
        due = [way.due for way in ways if way.due is not None]
        timeout = max(0, min(due) - time.monotonic_ns()) / 1e9 if due else None
        wait(sources, (), (), timeout)
        if nap:
            time.sleep(nap)
        for way in ways:
            way.take()
            way.deliver()


def main() -> int:
    """Make both devices, say so, and carry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("near")
    parser.add_argument("far")
    parser.add_argument("--delay-us", type=float, default=0, help="one way")
    parser.add_argument("--rate", type=int, default=0, help="bits a second; 0: no limit")
    parser.add_argument("--queue", type=int, default=1 << 20, help="bytes that may wait for the line")
    parser.add_argument("--loss", type=float, default=0, help="fraction of packets")
    parser.add_argument("--flip-port", type=int, default=0, help="a TCP port at the far end")
    parser.add_argument("--flip-every", type=int, default=0, help="bytes to that port")
    parser.add_argument("--flipped", type=Path, help="file that grows by a byte with each flip")
    parser.add_argument("--seed", default="7")
    parser.add_argument("--ready", type=Path, required=True, help="file that appears once the devices are there")
    wanted = parser.parse_args()
    near, far = open_tap(wanted.near), open_tap(wanted.far)
    flips = Flips(wanted.flip_port, wanted.flip_every, wanted.flipped) if wanted.flip_port else None
    ways = (Way(near, far, wanted, f"{wanted.seed} there", flips), Way(far, near, wanted, f"{wanted.seed} back"))
    nap = nap_seconds(wanted.delay_us)
    gc.disable()  # frames form no cycles
    wanted.ready.touch()
    try:
        carry(ways, nap)
    except OSError as error:
        sys.stderr.write(f"the cable ends: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
