"""What comes with rrmove for everyone's pytest: fixtures by entry point, which cost nothing where nobody asks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import rrmove
from rrmove import testing
from rrmove.testing import Faults

if TYPE_CHECKING:
    from collections.abc import Callable

    from rrmove.testing import EmbeddedNode

PAGE = (Path(__file__).parents[2] / "docs" / "transports.md").read_text(encoding="utf-8")
QUIET = ("-c", "/dev/null", "-p", "no:cacheprovider", "-q")
HEAVY = {"paramiko", "stevedore", "pluggy", "rich", "sqlite3", "rrmove.testing.node", "rrmove.testing.suite"}
ASKS = """
import json, sys
def test_nothing():
    print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture
def rrmove_faults() -> Faults:
    return Faults(hidden_tools=frozenset({"rsync"}))


def test_a_node_with_the_faults_that_were_asked_for(rrmove_node: EmbeddedNode) -> None:
    assert rrmove_node.faults.hidden_tools == {"rsync"}
    assert rrmove_node.home.is_dir()


def test_as_many_nodes_as_one_likes(rrmove_nodes: Callable[..., EmbeddedNode]) -> None:
    first, second = rrmove_nodes("a"), rrmove_nodes("b", Faults(rtt=0.1))
    assert (first.name, second.name, second.faults.rtt) == ("a", "b", 0.1)
    assert first.port != second.port


def test_who_does_not_ask_pays_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(ASKS)
    argv = [sys.executable, "-m", "pytest", *QUIET, "-s", "--rootdir", str(tmp_path), str(tmp_path)]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path).stdout
    loaded = set(json.loads(next(line for line in said.splitlines() if line.startswith("["))))
    assert "rrmove.testing.pytest_plugin" in loaded
    assert not loaded & (HEAVY - {"pluggy"})  # pytest itself has pluggy
    assert {name for name in loaded if name.startswith("rrmove")} == {
        "rrmove",
        "rrmove.testing",
        "rrmove.testing.pytest_plugin",
    }


def test_a_class_without_the_fixture_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from rrmove.testing import TransportSuite\nclass TestNone(TransportSuite): pass\n"
    )
    argv = [sys.executable, "-m", "pytest", *QUIET, "--rootdir", str(tmp_path), str(tmp_path), "-k", "fit_to_be"]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path).stdout
    assert "give your test class a fixture `transport`" in said


@pytest.mark.parametrize("name", testing.__all__)
def test_the_public_names_are_there_and_documented(name: str) -> None:
    thing = getattr(testing, name)
    assert (thing.__doc__ or "").strip()
    assert name in testing._HOME


def test_the_contract_tells_of_everything_a_transport_sees() -> None:
    for kind in (rrmove.Capabilities, rrmove.Job):
        names = set(kind.__dataclass_fields__) - {"request", "manifest", "facts", "emit"}
        assert not [name for name in names if name not in PAGE]
    members = {name for name in vars(rrmove.Transport) if not name.startswith("_")}
    assert members == {"name", "api_version", "needs", "capabilities", "refuse", "send"}
    assert not [name for name in members if f"{name}" not in PAGE]
    assert "three seconds" in PAGE
    assert "(300)" in PAGE
    assert "ten seconds" in PAGE
