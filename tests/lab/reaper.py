"""What ends a node's SSH connections at an age, by RST or by silence. Runs as a script."""

from __future__ import annotations

import argparse
import ctypes
import random
import socket
import struct
import subprocess
import time
from pathlib import Path

Peer = tuple[str, int]

_ETHERTYPE_IP = 0x0800
_SO_ATTACH_FILTER = 26
# Longer than a SYN needs headers
_ENOUGH = 128


def caller(packet: bytes) -> Peer:
    """Read who sent a TCP packet, given from its IP header on: address and port."""
    start = (packet[0] & 0x0F) * 4
    return socket.inet_ntoa(packet[12:16]), int.from_bytes(packet[start : start + 2], "big")


def listen(device: str, port: int) -> socket.socket:
    """Return a packet socket that gives the SYNs to a port of ours, each from its IP header on.

    Nothing is polled: /proc/net/tcp walks the whole machine's table and costs 4 ms a look, a core for ten nodes.
    """
    steps = (
        (0x30, 0, 0, 9),  # the protocol
        (0x15, 0, 8, socket.IPPROTO_TCP),
        (0x28, 0, 0, 6),  # no later fragment
        (0x45, 6, 0, 0x1FFF),
        (0xB1, 0, 0, 0),  # past the IP header
        (0x48, 0, 0, 2),  # the port it goes to
        (0x15, 0, 3, port),
        (0x50, 0, 0, 13),  # SYN without ACK
        (0x54, 0, 0, 0x12),
        (0x15, 1, 0, 0x02),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, _ENOUGH),
    )
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(steps), ctypes.addressof(program)))
    listener.bind((device, _ETHERTYPE_IP))
    return listener


def end(how: str, port: int, peer: Peer) -> bool:
    """End a connection: by RST, which both ends see, or by silence. Return whether it was there."""
    which = f"sport = :{port} and dst = {peer[0]} and dport = :{peer[1]}"
    look = ["ss", "-HtnK" if how == "reset" else "-Htn", "state", "established", which]
    there = bool(subprocess.run(look, capture_output=True, check=False).stdout.strip())
    if there and how == "silence":
        element = f"{{ {peer[0]} . {peer[1]} }}"
        subprocess.run(["nft", "add", "element", "inet", "lab", "silent", element], check=False)
    return there


def main() -> None:
    """Hear of each connection as it is asked for; end it at an age of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=("reset", "silence"))
    parser.add_argument("youngest", type=float)
    parser.add_argument("oldest", type=float)
    parser.add_argument("--device", default="eth0")
    parser.add_argument("--port", type=int, default=22)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--count", type=Path, required=True, help="file that says how many were ended; there at once")
    wanted = parser.parse_args()
    ages = random.Random(wanted.seed)
    listener = listen(wanted.device, wanted.port)
    due: dict[Peer, float] = {}
    ended = 0
    wanted.count.write_text("0")
    while True:
        listener.settimeout(max(0.001, min(due.values()) - time.monotonic()) if due else None)
        try:
            peer = caller(listener.recv(_ENOUGH))
        except TimeoutError:
            pass
        else:
            if peer not in due:  # else TCP has sent its SYN again
                due[peer] = time.monotonic() + ages.uniform(wanted.youngest, wanted.oldest)
        now = time.monotonic()
        for peer in [peer for peer, at in due.items() if at <= now]:
            del due[peer]
            if end(wanted.how, wanted.port, peer):
                ended += 1
                fresh = wanted.count.with_suffix(".new")
                fresh.write_text(str(ended))
                fresh.replace(wanted.count)


if __name__ == "__main__":
    main()
