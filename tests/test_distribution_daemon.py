"""The daemon among the examples, run as a service would run it: killed, fed and misled; the nodes' disks decide."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from rrmove.testing import EmbeddedNode, Faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER = Path(__file__).resolve().parent.parent / "examples"
SIZE = 6_000_003
GRAIN = 2 << 20

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh program")


class Daemon:
    """A running daemon and the lines that it has written. A context manager: leaving it kills it."""

    def __init__(self, directory: Path, *words: str, **environ: str) -> None:
        argv = [sys.executable, str(FOLDER / "distribution_daemon.py"), str(directory), *words]
        argv += ["--settle", "0.4", "--every", "0.1", "--retry", "0.5"]
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            argv, env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.end()

    def end(self) -> tuple[int, str]:
        """Wait for its end; gives its exit code and what is on stderr."""
        code = self.process.wait(30)
        self._reading.join()
        said = "" if not self.process.stderr or self.process.stderr.closed else self.process.stderr.read()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
        return code, said

    def said(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Give the lines of a kind, with these fields."""
        lines = [line for line in list(self.lines) if line["event"] == event]
        return [line for line in lines if all(line[name] == value for name, value in fields.items())]

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something is so."""
        patience = time.monotonic() + 30
        while not condition():
            assert self.process.poll() is None, f"it ended: {self.end()}"
            assert time.monotonic() < patience, f"waited in vain for {what}: {self.lines[-20:]}"
            time.sleep(0.02)


class Cluster:
    """Three nodes, an inventory, and a directory."""

    def __init__(self, nodes: list[EmbeddedNode], folder: Path) -> None:
        self.nodes, self.folder = nodes, folder
        self.directory = folder / "models"
        self.directory.mkdir()
        self.inventory = folder / "nodes.toml"
        self.config = folder / "ssh_config"
        self.config.write_text("\n".join(node.ssh_config.read_text() for node in nodes))
        self.tag(*nodes)

    def tag(self, *nodes: EmbeddedNode) -> None:
        """Say which nodes the inventory has."""
        text = "".join(f'[nodes.{node.name}]\ntags = ["gpu"]\ndest = "in/"\n' for node in nodes)
        self.inventory.write_text(text)

    def daemon(self, *words: str) -> Daemon:
        """Start a daemon for them."""
        return Daemon(
            self.directory, *(words or ("@gpu",)), "--ssh-config", str(self.config),
            RRMOVE_NODES=str(self.inventory), XDG_STATE_HOME=str(self.folder / "state"),
        )  # fmt: skip

    def put(self, name: str, size: int = SIZE) -> bytes:
        """Put a new file into the directory, all at once."""
        data = os.urandom(size)
        fresh = self.folder / "fresh"
        fresh.write_bytes(data)
        fresh.rename(self.directory / name)
        return data


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        names = ("gpu-0", "gpu-1", "gpu-2")
        yield Cluster([stack.enter_context(EmbeddedNode(name=name)) for name in names], tmp_path)


def there(node: EmbeddedNode, name: str) -> bytes | None:
    path = node.home / "in" / name
    return path.read_bytes() if path.exists() else None


def parts(node: EmbeddedNode) -> list[Path]:
    return [path for path in (node.home / "in").glob(".*.rrmove-part") if path.stat().st_blocks * 512 > GRAIN]


def test_it_is_killed_midway_and_sends_nothing_twice(cluster: Cluster) -> None:
    quick, cut, slow = cluster.nodes
    cut.faults = Faults(reset_after_bytes=2_500_000)
    slow.faults = Faults(rate=2e6)
    data = cluster.put("model.pth")
    for name in (".hidden", "other.pth.part", "other.TMP"):
        cluster.put(name, 1000)
    (cluster.directory / "folder").mkdir()
    with cluster.daemon() as daemon:
        daemon.until(lambda: len(daemon.said("delivered")) == 2 and parts(slow), "two nodes and a half")
        daemon.until(lambda: parts(slow)[0].stat().st_blocks * 512 > 2 * GRAIN, "two chunks")
        daemon.process.send_signal(signal.SIGKILL)
        assert daemon.end()[0] == -signal.SIGKILL
        lost = daemon.said("lost", node="gpu-1")
    assert cut.resets > 0
    assert lost
    assert there(slow, "model.pth") is None
    before = {node.name: (node.home / "in/model.pth").stat() for node in (quick, cut)}
    logins = [node.logins for node in (quick, cut)]
    carried = slow.bytes_in
    slow.faults = Faults()
    with cluster.daemon() as daemon:
        daemon.until(lambda: daemon.said("delivered"), "the third")
        assert daemon.said("distributing")[0]["nodes"] == ["gpu-2"]
        assert daemon.said("delivered")[0]["bytes_reused"] > 0
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.end() == (0, "")
        assert daemon.lines[-1]["event"] == "stopped"
    for node in cluster.nodes:
        assert there(node, "model.pth") == data
        assert sorted(path.name for path in (node.home / "in").iterdir()) == ["model.pth"]
    for node in (quick, cut):
        after = (node.home / "in/model.pth").stat()
        assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
            before[node.name].st_ino, before[node.name].st_mtime_ns, before[node.name].st_ctime_ns,
        )  # fmt: skip
    assert [node.logins for node in (quick, cut)] == logins  # they were not even asked
    assert slow.bytes_in - carried < SIZE - GRAIN // 2
    # Without its state it asks, and sends nothing.
    (cluster.directory / ".distribution.sqlite3").unlink()
    carried = sum(node.bytes_in for node in cluster.nodes)
    with cluster.daemon() as daemon:
        daemon.until(lambda: len(daemon.said("delivered", bytes_sent=0)) == 3, "all three")
    assert sum(node.bytes_in for node in cluster.nodes) - carried < 300_000


def test_what_is_still_written_waits_and_what_is_replaced_on_its_way_begins_anew(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    cluster.tag(node)
    node.faults = Faults(rate=2e6)
    with cluster.daemon() as daemon:
        longest, then = 0.0, time.monotonic()
        with (cluster.directory / "growing.pth").open("wb") as file:
            for _ in range(12):
                file.write(b"piece")
                file.flush()
                longest, then = max(longest, time.monotonic() - then), time.monotonic()
                time.sleep(0.1)
        daemon.until(lambda: there(node, "growing.pth") == 12 * b"piece", "the one that grew")
        assert len(daemon.said("distributing")) == 1 or longest > 0.3  # a machine so slow that it had settled

        cluster.put("model.pth")
        daemon.until(lambda: parts(node), "half of the first")
        second = cluster.put("model.pth", SIZE - 1)
        node.faults = Faults()
        daemon.until(lambda: daemon.said("delivered", file="model.pth"), "the second")
        assert there(node, "model.pth") == second
        assert len(daemon.said("replaced", file="model.pth")) == 1
        assert len(daemon.said("delivered", file="model.pth")) == 1

        cluster.put("gone.pth")
        node.faults = Faults(rate=2e6)
        daemon.until(lambda: daemon.said("distributing", file="gone.pth"), "its beginning")
        (cluster.directory / "gone.pth").unlink()
        daemon.until(lambda: daemon.said("replaced", file="gone.pth"), "its end")
        assert there(node, "gone.pth") is None
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.end() == (0, "")


def test_who_fails_is_tried_again_and_holds_up_nobody_and_who_is_new_gets_everything(cluster: Cluster) -> None:
    well, shut, new = cluster.nodes
    cluster.tag(well, shut)
    shut.faults = Faults(reject_auth=True)
    first = cluster.put("first.pth")
    with cluster.daemon("@gpu", "--health", "0.5") as daemon:
        daemon.until(lambda: len(daemon.said("failed", node="gpu-1")) >= 2, "two failures")
        assert [line["retry"] for line in daemon.said("failed")[:2]] == [0.5, 1.0]
        assert shut.connections >= 2
        second = cluster.put("second.pth")
        cluster.tag(well, shut, new)
        daemon.until(lambda: len(daemon.said("delivered")) == 4, "two nodes with two files")
        assert there(well, "first.pth") == there(new, "first.pth") == first
        assert there(well, "second.pth") == there(new, "second.pth") == second
        daemon.until(lambda: daemon.said("health", nodes=3, files=2, failing=2, delivered=4), "a line about its health")

        cluster.inventory.write_text("[nodes.gpu-0\n")
        daemon.until(lambda: daemon.said("trouble"), "a word about the inventory")
        cluster.put("small.pth", 1000)
        daemon.until(lambda: len(daemon.said("delivered", file="small.pth")) == 2, "those that it knew")
        cluster.tag(*cluster.nodes)
        shut.faults = Faults()
        daemon.process.send_signal(signal.SIGHUP)
        daemon.until(lambda: len(daemon.said("delivered", node="gpu-1")) == 3, "the one that had failed")
        assert (there(shut, "first.pth"), there(shut, "second.pth")) == (first, second)

        shut.faults, new.faults = Faults(reject_auth=True), Faults(rate=8e5)
        cluster.put("third.pth")
        daemon.until(lambda: daemon.said("delivered", node="gpu-0", file="third.pth") and parts(new), "half a file")
        daemon.until(lambda: len(daemon.said("failed", file="third.pth")) >= 2, "another try beside the slow one")
        assert not daemon.said("delivered", node="gpu-2", file="third.pth")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.end() == (0, "")
    assert there(new, "third.pth") is None
    assert parts(new), "what had arrived is gone"


def test_it_says_what_is_wrong_with_the_call(cluster: Cluster) -> None:
    with cluster.daemon("@tpu") as daemon:
        code, said = daemon.end()
    assert code == 2
    assert "@gpu" in said
    with Daemon(cluster.folder / "nowhere", "@gpu") as daemon:
        code, said = daemon.end()
    assert code == 2
    assert "there is no directory" in said
    with cluster.daemon() as first:
        first.until(lambda: first.said("started"), "the first")
        with cluster.daemon() as second:
            code, said = second.end()
    assert code == 2
    assert "locked" in said
    assert "Traceback" not in said


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit(tmp_path: Path) -> None:
    unit = FOLDER / "rrmove-distribution.service"
    (words,) = re.findall(r"^ExecStart=/usr/bin/env python3 \S+ (.*)$", unit.read_text(), re.MULTILINE)
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    broken = tmp_path / "broken.service"
    broken.write_text(unit.read_text().replace("Restart=", "Restarts="))
    done = subprocess.run(["systemd-analyze", "verify", broken], capture_output=True, text=True, check=False)
    assert done.stderr, "systemd-analyze finds nothing, whatever is wrong"
    argv = [sys.executable, str(FOLDER / "distribution_daemon.py"), *words.split()]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "there is no directory '/srv/models'" in done.stderr  # the words are understood
