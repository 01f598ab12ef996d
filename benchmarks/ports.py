"""A port besides SSH's against scp, in one run: 1 GiB over a link of the lab that nothing but the machine bounds.

    python -m benchmarks.ports [--size MIB] [--runs N] [--write]

Needs root. The movers run one after the other on fresh nodes, and the file is hashed on the node's disk from outside.
Two rates: of the whole command, with login, hashing before and reading back after; and of the sending alone, from the
attempt's start (for scp: less what it takes to move one byte) to the last byte acknowledged. `--write` puts the table
into benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.links import MIB, RRMOVE
from tests.lab import Lab, Profile

HERE = Path(__file__).parent
NODE = Profile("open", open_ports=(8780,))
MOVERS = {
    "scp": ("scp", ""),
    "http, plain": ("http", "off"),
    "http, TLS": ("http", "on"),
    "chunked": ("chunked", ""),
}


@dataclass(frozen=True)
class Result:
    """Seconds of the whole command, and of the sending alone."""

    whole: float
    sending: float


def _scp(lab: Lab, path: Path) -> float:
    begun = time.monotonic()
    lab.run(["scp", "-q", "-o", "BatchMode=yes", path, "open:/root/in.bin"])
    return time.monotonic() - begun


def _rrmove(lab: Lab, path: Path, transport: str, tls: str) -> Result:
    said = ["-o", f"http.tls={tls}"] if tls else []
    argv: list[str | Path] = [RRMOVE, "auto", "--json", "--only", transport, *said, path, "open:/root/in.bin"]
    begun = time.monotonic()
    started = last = begun
    with lab.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout or ():
            event, now = json.loads(line)["event"], time.monotonic()
            if event == "attempt_started":
                started = now
            elif event == "progressed":
                last = now
    return Result(time.monotonic() - begun, last - started)


def run_one(mover: str, path: Path, small: Path, digest: str) -> Result:
    """Run one mover on a fresh node. Raises SystemExit where the file is not whole."""
    transport, tls = MOVERS[mover]
    with Lab([NODE]) as lab:
        if transport == "scp":
            login = _scp(lab, small)
            whole = _scp(lab, path)
            result = Result(whole, whole - login)
        else:
            result = _rrmove(lab, path, transport, tls)
        if lab.sha256("open", "/root/in.bin") != digest:
            raise SystemExit(f"{mover}: WRONG FILE")
    return result


def main() -> None:
    """Run all movers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    size = chosen.size * MIB
    results: dict[str, list[Result]] = {mover: [] for mover in MOVERS}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path, small = Path(folder, "in.bin"), Path(folder, "small.bin")
        small.write_bytes(b"x")
        with path.open("wb") as file:
            for _ in range(chosen.size):
                file.write(os.urandom(MIB))
        digest = subprocess.run(["openssl", "dgst", "-sha256", "-r", path], capture_output=True, text=True, check=True)
        for _ in range(chosen.runs):
            for mover in MOVERS:
                result = run_one(mover, path, small, digest.stdout.split()[0])
                results[mover].append(result)
                print(f"{mover}: {result.whole:.2f} s, {result.sending:.2f} s of them sending", flush=True)
    lines = table(results, size)
    print("\n".join(lines))
    if chosen.write:
        write(lines, chosen.size)


def table(results: dict[str, list[Result]], size: int) -> list[str]:
    """Give the medians, and the rates as ratios to scp's."""
    lines = [
        "| mover | seconds | MB/s | to scp | sending alone, s | MB/s | to scp |",
        "|---|---|---|---|---|---|---|",
    ]
    scp = Result(*(statistics.median(getattr(r, name) for r in results["scp"]) for name in ("whole", "sending")))
    for mover, each in results.items():
        whole = statistics.median(result.whole for result in each)
        sending = statistics.median(result.sending for result in each)
        lines.append(
            f"| {mover} | {whole:.2f} | {size / whole / 1e6:.0f} | {scp.whole / whole:.2f} |"
            f" {sending:.2f} | {size / sending / 1e6:.0f} | {scp.sending / sending:.2f} |"
        )
    return lines


def write(lines: list[str], mib: int) -> None:
    """Put the table where it is read."""
    readme = HERE / "README.md"
    head, rest = readme.read_text().split("<!-- ports -->")
    _, tail = rest.split("<!-- end ports -->")
    machine = f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    block = [f"\nNewest run: {time.strftime('%Y-%m-%d')}; {mib} MiB; {machine}; both ends share them.\n", *lines, ""]
    readme.write_text(head + "<!-- ports -->" + "\n".join(block) + "<!-- end ports -->" + tail)


if __name__ == "__main__":
    main()
