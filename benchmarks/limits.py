"""How well moves keep to limits that they share, looked at from outside: what grows on the nodes' disks.

    python -m benchmarks.limits [--seconds S] [CASE ...]

Needs root (the lab makes network namespaces). Nodes behind 400 Mbit/s and 20 ms belong to one provider with a limit
of 10 MB/s, and every move is a process of its own unless the row says otherwise. The bars: together within 5 % of the
limit, each within 10 % of its share; one that is killed leaves its share within 5 s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import Lab, Profile

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

MIB = 1 << 20
RRMOVE = Path(sys.executable).with_name("rrmove")
LIMIT = 10e6  # bytes a second
SETTLED = 2.5  # s from the first byte on every node until it is measured
MANY = 20


class Case:
    """A lab, and moves in it."""

    def __init__(self, lab: Lab, folder: Path, nodes: dict[str, str]) -> None:
        self.lab, self.source, self.nodes = lab, folder / "in.bin", list(nodes)
        self.inventory = folder / "rrmove.toml"
        tables = [f'[nodes.{name}]\nprovider = "p"\n{more}\n' for name, more in nodes.items()]
        self.inventory.write_text(f"[providers.p]\nlimit_rate = {LIMIT:.0f}\n" + "".join(tables), encoding="utf-8")
        self.moves: list[subprocess.Popen[bytes]] = []

    def move(self, targets: list[str], *options: str) -> subprocess.Popen[bytes]:
        """Begin a move of the file."""
        argv: list[str | Path] = [RRMOVE, "auto", "-q", "--nodes", self.inventory, *options, self.source]
        self.moves.append(self.lab.popen([*argv, *(f"{target}:/root/in.bin" for target in targets)]))
        return self.moves[-1]

    def there(self) -> list[int]:
        """Give the bytes on each node's disk."""
        return [sum(part.stat().st_blocks * 512 for part in self._parts(name)) for name in self.nodes]

    def _parts(self, name: str) -> list[Path]:
        return list(self.lab.path(name, "/root").glob(".in.bin.*.rrmove-part"))

    def rates(self, seconds: float) -> list[float]:
        """Wait until all have begun and settled, and give the bytes a second that come to each node."""
        while not all(self.there()):
            self.check()
            time.sleep(0.05)
        time.sleep(SETTLED)
        return self.now(seconds)

    def now(self, seconds: float) -> list[float]:
        """Give the bytes a second that come to each node from now on."""
        before, then = self.there(), time.monotonic()
        time.sleep(seconds)
        after, span = self.there(), time.monotonic() - then
        self.check()
        return [(b - a) / span for a, b in zip(before, after, strict=True)]

    def check(self) -> None:
        """Raise where a move has ended that should go on."""
        for process in self.moves:
            if process.poll() not in {None, -signal.SIGKILL}:
                raise SystemExit(f"a move ended with {process.returncode}")


@contextlib.contextmanager
def lab_of(nodes: dict[str, str]) -> Iterator[Case]:
    """Build nodes and clear up afterwards."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        (Path(folder) / "in.bin").write_bytes(os.urandom(int(LIMIT * 1.3e-6) * 12 * 10**6))
        with Lab([Profile(name, rtt_ms=20, rate="20mbit" if name == "far" else "400mbit") for name in nodes]) as lab:
            case = Case(lab, Path(folder), nodes)
            try:
                yield case
            finally:
                for process in case.moves:
                    process.kill()
                    process.wait()


def row(what: str, rates: list[float], expected: list[float]) -> None:
    """Print what came of a case."""
    got = " + ".join(f"{rate / 1e6:.2f}" for rate in rates)
    off = sum(rates) / sum(expected) - 1
    worst = max(abs(rate / share - 1) for rate, share in zip(rates, expected, strict=True))
    print(f"| {what} | {got} | {sum(rates) / 1e6:.2f} | {off * 100:+.1f} % | {worst * 100:.1f} % |", flush=True)


def two(seconds: float, transport: str = "chunked") -> None:
    """Two processes, a node each."""
    with lab_of({"one": "", "two": ""}) as case:
        case.move(["one"], "--only", transport)
        case.move(["two"], "--only", transport)
        row("two processes" + (f", {transport}" if transport != "chunked" else ""), case.rates(seconds), [5e6, 5e6])


def weighed(seconds: float) -> None:
    """Two processes of which one counts three times."""
    with lab_of({"one": "", "two": ""}) as case:
        case.move(["one"], "--only", "chunked", "--priority", "30")
        case.move(["two"], "--only", "chunked")
        row("`--priority 30` beside the usual 10", case.rates(seconds), [7.5e6, 2.5e6])


def slow(seconds: float) -> None:
    """One node has a limit of its own."""
    with lab_of({"one": 'limit_rate = "2M"', "two": ""}) as case:
        case.move(["one"], "--only", "chunked")
        case.move(["two"], "--only", "chunked")
        row("one node's own limit is 2 MB/s", case.rates(seconds), [2e6, 8e6])


def far(seconds: float) -> None:
    """One node's link carries less than its share: the other takes what that leaves."""
    with lab_of({"far": "", "two": ""}) as case:
        case.move(["far"], "--only", "chunked")
        case.move(["two"], "--only", "chunked")
        row("one node is behind 20 Mbit/s", case.rates(seconds), [2.4e6, 7.6e6])


def together(seconds: float) -> None:
    """One process with two targets."""
    with lab_of({"one": "", "two": ""}) as case:
        case.move(["one", "two"], "--only", "chunked")
        row("one process, two targets", case.rates(seconds), [5e6, 5e6])


def mixed(seconds: float) -> None:
    """A program that limits itself began alone; then comes one that asks."""
    with lab_of({"one": "", "two": ""}) as case:
        case.move(["one"], "--only", "rsync")
        time.sleep(2)
        case.move(["two"], "--only", "chunked")
        row("rsync, which began alone, and chunked", case.rates(seconds), [5e6, 5e6])


def killed(seconds: float) -> None:
    """One of two is killed: the other takes all."""
    with lab_of({"one": "", "two": ""}) as case:
        first = case.move(["one"], "--only", "chunked")
        case.move(["two"], "--only", "chunked")
        case.rates(1)
        os.kill(first.pid, signal.SIGKILL)
        then, waited, rate = time.monotonic(), 0.0, 0.0
        while rate < 0.95 * LIMIT and waited < 10:
            rate = case.now(0.5)[1]
            waited = time.monotonic() - then
        row(f"`kill -9` of one of two: all of it after {waited:.1f} s", case.now(seconds)[1:], [LIMIT])


def many(seconds: float) -> None:
    """Twenty processes begin at the same moment."""
    with lab_of({f"n{number}": "" for number in range(MANY)}) as case:
        for name in case.nodes:
            case.move([name], "--only", "chunked")
        seen = [(time.monotonic(), 0)]
        while not all(case.there()):
            case.check()
            time.sleep(0.1)
            seen.append((time.monotonic(), sum(case.there())))
        spans = [(b - a, later - at) for at, a in seen for later, b in seen if 1.0 <= later - at <= 1.2]
        most = max(count / span for count, span in spans)
        print(
            f"| {MANY} processes at once, the {seen[-1][0] - seen[0][0]:.0f} s until each has begun: most in a second "
            f"| {most / 1e6:.2f} | | | |",
            flush=True,
        )
        rates = case.rates(seconds)
        spread = f"{min(rates) / 1e6:.2f} to {max(rates) / 1e6:.2f} each"
        row(f"{MANY} processes, then ({spread})", [sum(rates)], [LIMIT])


CASES = {
    "two": two,
    "rsync": lambda seconds: two(seconds, "rsync"),
    "mixed": mixed,
    "priority": weighed,
    "slow": slow,
    "far": far,
    "together": together,
    "killed": killed,
    "many": many,
}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))
    words = parser.parse_args()
    print("| moves | arrived, MB/s | together | off by | worst share off by |\n|---|---|---|---|---|")
    for name in words.cases or CASES:
        CASES[name](words.seconds)


if __name__ == "__main__":
    main()
