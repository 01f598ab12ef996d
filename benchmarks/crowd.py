"""One file to many embedded nodes under resets: the seconds, and the memory of the process that sends.

    python -m benchmarks.crowd [--nodes 64] [--size MIB] [--at-once N] [--rtt S]

The nodes are in a process of their own; what is weighed is `rrmove auto` with all that it started, from outside, twenty
times a second: resident memory (RSS, which counts a page that two processes share twice) and its fair share (PSS).
Every node's file is hashed from outside, and every node must have seen a reset. The bar is 200 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rrmove.testing import EmbeddedNode, Faults

RRMOVE = Path(sys.executable).with_name("rrmove")
LOOK = 0.05  # s between two looks
BAR = 200e6  # bytes


@dataclass
class Weighed:
    """The most that a process and all below it had at one time; bytes."""

    rss: int = 0
    pss: int = 0
    own: int = 0
    threads: int = 0
    by_program: Counter[str] = field(default_factory=Counter)
    """Bytes of PSS, and how many there were, by program, when all together had the most."""
    processes: Counter[str] = field(default_factory=Counter)

    def look(self, root: int) -> None:
        """Take in what there is now."""
        seen = [each for pid in below(root) if (each := _memory(pid)) is not None]
        # One that is about to become another program still has our own memory, and counts it a second time.
        seen = [each for number, each in enumerate(seen) if not number or each.command != seen[0].command]
        if not seen:
            return
        self.rss = max(self.rss, sum(each.rss for each in seen))
        if (pss := sum(each.pss for each in seen)) > self.pss:
            self.pss, self.by_program, self.processes = pss, Counter(), Counter(each.program for each in seen)
            for each in seen:
                self.by_program[each.program] += each.pss
        self.own = max(self.own, seen[0].pss)
        self.threads = max(self.threads, seen[0].threads)


def below(root: int) -> list[int]:
    """Give a process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


class _Process(NamedTuple):
    command: bytes
    rss: int
    pss: int
    threads: int

    @property
    def program(self) -> str:
        """What runs: our own client is a Python, too."""
        words = self.command.split(b"\0")
        return "client" if b"rrmove.ssh.client" in words else os.fsdecode(words[0].rpartition(b"/")[2])


def _memory(pid: int) -> _Process | None:
    """Look at a process; None where it has gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    sizes = {line.split()[0]: int(line.split()[1]) << 10 for line in rollup.splitlines()[1:]}
    threads = int(status.partition("Threads:")[2].split()[0])
    return _Process(command, sizes.get("Rss:", 0), sizes.get("Pss:", 0), threads)


def weighed(argv: list[str], environ: dict[str, str]) -> tuple[int, Weighed, float, str]:
    """Run a program to its end; gives its exit code, what it weighed, its seconds, and its output."""
    begun, weight, out = time.monotonic(), Weighed(), list[str]()
    with subprocess.Popen(argv, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reading = threading.Thread(target=lambda: out.extend(process.stdout or ()))
        reading.start()
        while process.poll() is None:
            weight.look(process.pid)
            time.sleep(LOOK)
        seconds = time.monotonic() - begun
        reading.join()
    return process.returncode, weight, seconds, "".join(out)


def serve(count: int, faults: Faults) -> None:
    """Be the nodes: tell where they are, and after a line on stdin, what befell them."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(EmbeddedNode(faults, name=f"gpu-{number}")) for number in range(count)]
        print(json.dumps([[node.name, str(node.home), str(node.ssh_config)] for node in nodes]), flush=True)
        sys.stdin.readline()
        print(json.dumps([[node.resets, node.logins, node.bytes_in] for node in nodes]), flush=True)


def measure(count: int, size: int, reset_after: int, *words: str, rtt: float = 0.0) -> dict[str, Any]:
    """Move a file of so many bytes to so many nodes."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        source, state = Path(folder) / "model.bin", Path(folder) / "state"
        source.write_bytes(os.urandom(size))
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        argv = [sys.executable, "-m", "benchmarks.crowd", "--serve", "--nodes", str(count)]
        argv += ["--reset-after", str(reset_after), "--rtt", str(rtt)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nodes:
            assert nodes.stdin is not None
            assert nodes.stdout is not None
            told = json.loads(nodes.stdout.readline())
            config = Path(folder) / "ssh_config"
            config.write_text("\n".join(Path(path).read_text() for _, _, path in told))
            command = [str(RRMOVE), "auto", "--json", "-q", "-F", str(config), *words]
            command += [str(source), *(name for name, _, _ in told)]
            code, weight, seconds, out = weighed(command, {"XDG_STATE_HOME": str(state)})
            whole = 0
            for _, home, _ in told:
                path = Path(home) / "model.bin"
                whole += path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest
            nodes.stdin.write("\n")
            nodes.stdin.flush()
            befell = json.loads(nodes.stdout.readline())
    return {
        "code": code,
        "whole": whole,
        "seconds": seconds,
        "weight": weight,
        "reset": sum(resets > 0 for resets, _, _ in befell),
        "resets": sum(resets for resets, _, _ in befell),
        "logins": sum(logins for _, logins, _ in befell),
        "sent": sum(sent for _, _, sent in befell) / (size * count),
        "out": out,
    }


def main() -> None:
    """Measure once, and print a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--size", type=int, default=8, help="MiB")
    parser.add_argument("--at-once", type=int)
    parser.add_argument("--reset-after", type=int, default=3_000_000, help="bytes")
    parser.add_argument("--rtt", type=float, default=0.0, help="seconds")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.serve:
        serve(wanted.nodes, Faults(reset_after_bytes=wanted.reset_after, rtt=wanted.rtt))
        return
    words = ("--at-once", str(wanted.at_once)) if wanted.at_once else ()
    found = measure(wanted.nodes, wanted.size << 20, wanted.reset_after, *words, rtt=wanted.rtt)
    weight = found["weight"]
    programs = ", ".join(
        f"{count} {name} {weight.by_program[name] / 1e6:.0f}" for name, count in weight.processes.items()
    )
    row = {
        "nodes": wanted.nodes,
        "at once": wanted.at_once or "16, the default",
        "round trip, ms": f"{1000 * wanted.rtt:.0f}",
        "whole": found["whole"],
        "s": f"{found['seconds']:.1f}",
        "resets": found["resets"],
        "bytes on the wire / size": f"{found['sent']:.2f}",
        "memory, MB": f"{weight.pss / 1e6:.0f}",
        "shared pages counted twice, MB": f"{weight.rss / 1e6:.0f}",
        "of whom, MB": programs,
        "threads": weight.threads,
    }
    print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}\n| {' | '.join(map(str, row.values()))} |")
    well = found["code"] == 0 and found["whole"] == found["reset"] == wanted.nodes and weight.pss <= BAR
    if not well:
        raise SystemExit(f"exit {found['code']}, {found['reset']} nodes saw a reset\n{found['out'][-2000:]}")


if __name__ == "__main__":
    main()
