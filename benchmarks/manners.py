"""How soon a move begins, and how well it keeps to a limit; both looked at from outside.

    python -m benchmarks.manners [--runs N]

Needs root (the lab makes network namespaces). The first table has the seconds from the command's start to the first
byte of the file on the node's disk, beside a cold `ssh NODE true` on the same link; the bar is that plus 0.15 s and two
round trips. The second has the rate at which bytes arrive under `--limit-rate`, and the most that came in any quarter
of a second; the bars are 3 % and twice a quarter second's worth.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.lab import Lab, Profile

MIB = 1 << 20
RRMOVE = Path(sys.executable).with_name("rrmove")
LOOK = 0.002  # s between two looks at the node's disk
QUARTER = 0.25  # s


def first_byte(rtt_ms: float, source: Path) -> tuple[float, float]:
    """Give the seconds of a cold `ssh NODE true`, and those until the first byte of the file is on the node."""
    with Lab([Profile("node", rate="160mbit", rtt_ms=rtt_ms)]) as lab:
        begun = time.monotonic()
        lab.run(["ssh", "-o", "BatchMode=yes", "node", "true"])
        cold = time.monotonic() - begun
        home = lab.path("node", "/root")
        begun = time.monotonic()
        with lab.popen([RRMOVE, "auto", "-q", source, "node:/root/in.bin"]) as process:
            while not any(part.stat().st_blocks for part in home.glob(".in.bin.*.rrmove-part")):
                if process.poll() is not None:
                    raise SystemExit("the move ended before a byte was seen")
                time.sleep(LOOK)
            first = time.monotonic() - begun
            process.wait()
    return cold, first


def limited(rate: float, source: Path) -> tuple[float, float]:
    """Give the bytes a second that arrived between a fifth and the end, and the most in a quarter of a second."""
    with Lab([Profile("node", rtt_ms=20, rate="400mbit")]) as lab:
        seen = [(time.monotonic(), lab.bytes_to("node"))]
        with lab.popen(
            [RRMOVE, "auto", "-q", "--only", "chunked", "--limit-rate", str(int(rate)), source, "node:/root/in.bin"]
        ) as process:
            while process.poll() is None:
                time.sleep(0.02)
                seen.append((time.monotonic(), lab.bytes_to("node")))
    total = seen[-1][1] - seen[0][1]
    steady = [(at, count) for at, count in seen if 0.2 * total < count - seen[0][1] < 0.97 * total]
    (first, low), (last, high) = steady[0], steady[-1]
    most = 0.0
    for i, (at, count) in enumerate(steady):
        later = next((other for other in steady[i:] if other[0] - at >= QUARTER), None)
        if later is not None:
            most = max(most, (later[1] - count) * QUARTER / (later[0] - at))
    # What the wire carries besides the file: headers of Ethernet, IP and TCP, and SSH's.
    payload = source.stat().st_size / total
    return (high - low) / (last - first) * payload, most * payload


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        source = Path(folder) / "in.bin"
        source.write_bytes(os.urandom(60 * MIB))
        print("| round trip | cold `ssh NODE true`, s | first byte on the node, s | bar, s |\n|---|---|---|---|")
        for rtt_ms in (0.0, 40.0, 150.0):
            pairs = [first_byte(rtt_ms, source) for _ in range(runs)]
            cold, first = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"| {rtt_ms:.0f} ms | {cold:.2f} | {first:.2f} | {cold + 0.15 + 2 * rtt_ms / 1000:.2f} |", flush=True)
        print("\n| limit, MB/s | arrived, MB/s | off by | most in 0.25 s, of its worth |\n|---|---|---|---|")
        for rate in (4e6, 10e6, 25e6):
            got, most = limited(rate, source)
            worth = most / (rate * QUARTER)
            print(f"| {rate / 1e6:.0f} | {got / 1e6:.2f} | {(got / rate - 1) * 100:+.1f} % | {worth:.2f} |", flush=True)


if __name__ == "__main__":
    main()
