"""Every example is run as a stranger would run it, and what it moved is looked at on the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rrmove.testing import EmbeddedNode, Faults

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).resolve().parent.parent / "examples"
DAEMON = FOLDER / "distribution_daemon.py"  # see test_distribution_daemon.py
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path != DAEMON)
SIZE = 7_000_003  # more than one connection of the node below carries, and no multiple of anything

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh program")


@pytest.fixture(scope="module")
def node() -> Iterator[EmbeddedNode]:
    """Give a node whose connections are reset after 6 MB."""
    with EmbeddedNode(Faults(reset_after_bytes=6_000_000), name="gpu-3") as node:
        yield node


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    path.write_bytes(os.urandom(SIZE))
    return path


def run(example: Path, *words: object, **environ: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(example), *map(str, words)]
    return subprocess.run(argv, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
class TestEvery:
    """What holds for every example."""

    def test_moves_a_file(self, example: Path, node: EmbeddedNode, source: Path) -> None:
        done = run(example, source, f"gpu-3:{example.stem}/", "--ssh-config", node.ssh_config)
        assert done.returncode == 0, done.stderr
        assert (node.home / example.stem / "model.pth").read_bytes() == source.read_bytes()
        assert str(node.home / example.stem / "model.pth") in done.stdout

    def test_finds_nodes_in_the_inventory(
        self, example: Path, node: EmbeddedNode, source: Path, tmp_path: Path
    ) -> None:
        inventory = tmp_path / "nodes.toml"
        inventory.write_text(f'[nodes.gpu-3]\ndest = "inventory/{example.stem}/"\n')
        done = run(example, source, "gpu-3", "--ssh-config", node.ssh_config, RRMOVE_NODES=str(inventory))
        assert done.returncode == 0, done.stderr
        assert (node.home / "inventory" / example.stem / "model.pth").read_bytes() == source.read_bytes()

    def test_says_what_is_wrong_with_the_call(self, example: Path, node: EmbeddedNode, tmp_path: Path) -> None:
        done = run(example, tmp_path / "missing", "gpu-3", "--ssh-config", node.ssh_config)
        assert done.returncode == 2
        assert "missing" in done.stderr
        assert "Traceback" not in done.stderr

    def test_fails_with_a_message(self, example: Path, source: Path) -> None:
        with EmbeddedNode(Faults(reject_auth=True), name="shut") as shut:
            done = run(example, source, "shut", "--ssh-config", shut.ssh_config)
            assert done.returncode == 1
            assert "shut" in done.stderr
            assert "Traceback" not in done.stderr
            assert not any(shut.home.iterdir())


def test_the_events_are_in_order(node: EmbeddedNode, source: Path) -> None:
    example = next(path for path in EXAMPLES if path.stem == "watch_events")
    said = run(example, source, "gpu-3:ordered.pth", "--ssh-config", node.ssh_config).stdout
    milestones = ["will try", "begins", "stands as", "done after"]
    assert sorted(milestones, key=said.find) == milestones
    assert said.find(milestones[0]) >= 0
