"""A command line in a home of its own, whose moves are scripted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rrmove.cli import main
from tests.cli.scripted import NODES, Said, Script, replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a home with two nodes, and be in a directory of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    nodes = tmp_path / "nodes.toml"
    nodes.write_text(NODES)
    monkeypatch.setenv("RRMOVE_NODES", str(nodes))
    work = tmp_path / "work"
    work.mkdir()
    (work / "model.pth").write_bytes(b"x" * 1_000_000)
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Replace `rrmove.move` by a script."""
    script = Script()
    replace(monkeypatch, "rrmove.moving", move=script.move)
    return script


@pytest.fixture
def rrmove(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run the command in this process."""

    def run(*argv: str) -> Said:
        code = main(argv)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run
