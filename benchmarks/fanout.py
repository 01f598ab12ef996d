"""One file to eight nodes behind one uplink of 160 Mbit/s: nodes that reach each other, a hub, nodes that do not.

    python -m benchmarks.fanout [--size MIB] [--only NAME] [--write]

Needs root. Each case runs on fresh nodes; the file is hashed on every node's disk from outside, and the bytes on our
line are those that the kernel has counted. The case of one node comes first: what the others are compared with.
`--write` puts the table into benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.links import MIB, RRMOVE
from tests.lab import Lab, Profile

HERE = Path(__file__).parent
UPLINK = "160mbit"
WIRE = 20e6  # bytes a second of it
COUNT, RTT, PORT = 8, 10, 8780
NAMES = tuple(f"rack-{number}" for number in range(COUNT))


@dataclass(frozen=True)
class Result:
    """Seconds of the command and of the slowest and the quickest node in it, and bytes on our line."""

    whole: float
    slowest: float
    quickest: float
    sent: int
    ways: str


def cluster(case: str) -> list[Profile]:
    """Give the nodes of a case."""
    profiles = []
    for name in NAMES[: 1 if case == "one node" else COUNT]:
        reached = case != "strangers" and (case != "a hub" or name == NAMES[0])
        profiles.append(Profile(name, rtt_ms=RTT, open_ports=(PORT,) if reached else ()))
    return profiles


def run_one(case: str, path: Path, digest: str) -> Result:
    """Run one case. Raises SystemExit where the file is not whole everywhere."""
    with Lab(cluster(case), uplink=UPLINK) as lab:
        inventory = lab.directory / "nodes.toml"
        inventory.write_text(f'[nodes.{NAMES[0]}]\ntags = ["hub"]\n' if case == "a hub" else "")
        before, begun = lab.bytes_sent(), time.monotonic()
        targets = [f"{name}:/data/in.bin" for name in lab.names]
        argv: list[str | Path] = [RRMOVE, "auto", "--json", "--nodes", inventory, path, *targets]
        done = lab.run(argv, timeout=100, check=False)
        whole, sent = time.monotonic() - begun, lab.bytes_sent() - before
        if done.returncode or {lab.sha256(name, "/data/in.bin") for name in lab.names} != {digest}:
            raise SystemExit(f"{case}: exit {done.returncode}: {done.stderr[-2000:]}")
    last = json.loads(done.stdout.splitlines()[-1])
    ends = last.get("nodes", [last])
    took = [end["seconds"] for end in ends]
    ways: dict[str, int] = {}
    for end in ends:
        ways[end["transport"]] = ways.get(end["transport"], 0) + 1
    told = ", ".join(f"{count} {name}" for name, count in sorted(ways.items()))
    return Result(whole, max(took), min(took), sent, told)


CASES = ("one node", "siblings", "a hub", "strangers")


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="MiB")
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    size, results = chosen.size * MIB, dict[str, Result]()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder, "in.bin")
        path.write_bytes(os.urandom(size))
        digest = subprocess.run(["openssl", "dgst", "-sha256", "-r", path], capture_output=True, text=True, check=True)
        for case in chosen.only or CASES:
            results[case] = run_one(case, path, digest.stdout.split()[0])
            print(case, results[case], flush=True)
    lines = table(results, size)
    print("\n".join(lines))
    if chosen.write:
        write(lines, chosen.size)


def table(results: dict[str, Result], size: int) -> list[str]:
    """Give the figures, as ratios to one node alone, to the wire and to the file."""
    lines = [
        "| case | seconds | to one node | to the wire, once | slowest / quickest | bytes on our line / size | by |",
        "|---|---|---|---|---|---|---|",
    ]
    alone = results["one node"].whole if "one node" in results else float("nan")
    for case, each in results.items():
        lines.append(
            f"| {case} | {each.whole:.2f} | {each.whole / alone:.2f} | {each.whole / (size / WIRE):.2f} |"
            f" {each.slowest / each.quickest:.2f} | {each.sent / size:.2f} | {each.ways} |"
        )
    return lines


def write(lines: list[str], mib: int) -> None:
    """Put the table where it is read."""
    readme = HERE / "README.md"
    head, rest = readme.read_text().split("<!-- fanout -->")
    _, tail = rest.split("<!-- end fanout -->")
    machine = f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    block = [f"\nNewest run: {time.strftime('%Y-%m-%d')}; {mib} MiB; {machine}; all nodes share them.\n", *lines, ""]
    readme.write_text(head + "<!-- fanout -->" + "\n".join(block) + "<!-- end fanout -->" + tail)


if __name__ == "__main__":
    main()
