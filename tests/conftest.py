"""What all tests share: a home of their own, quick tests before the lab's, and --campaign."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # `pytest`, unlike `python -m pytest`, does not put it there: for `tests.lab`

from tests.lab.fixtures import lab  # noqa: E402 - needs the line above

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["lab", "own_experience", "own_home"]

LAB = ROOT / "tests" / "lab"
KINDS = ("CACHE", "CONFIG", "DATA", "STATE")
# What a developer may have set for their own moves.
STRANGE = ("RRMOVE_NODES", "RRMOVE_PLUGINS", "SSH_AUTH_SOCK", "SSH_ASKPASS")


LONGEST = "test_moves.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --campaign."""
    parser.addoption("--campaign", action="store_true", help="run the long campaigns, too (marker: campaign)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run what is quick before what needs the lab, each in the order it has; skip campaigns unless asked for.

    Of the lab the longest first: a file that begins last should not be one that takes two minutes.
    """
    items.sort(key=lambda item: (_needs_lab(item), item.path.name != LONGEST))
    if not config.getoption("--campaign"):
        skip = pytest.mark.skip(reason="a campaign: runs with --campaign")
        for item in items:
            if item.get_closest_marker("campaign"):
                item.add_marker(skip)


def _needs_lab(item: pytest.Item) -> bool:
    return item.get_closest_marker("lab") is not None or item.path.is_relative_to(LAB)


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give all tests, and what they start, an empty home: no inventory, no experience, no SSH agent of ours.

    One thing it cannot take away: `ssh` finds ~/.ssh through the password file, whatever $HOME says. So a test
    that starts `ssh`, or rrmove, names an ssh_config (`-F`), as the embedded node and the lab bring one.
    """
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for kind in KINDS:
            patch.setenv(f"XDG_{kind}_HOME", str(home / kind.lower()))
        for name in STRANGE:
            patch.delenv(name, raising=False)
        yield home


@pytest.fixture
def own_experience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test not know what another one found out about a node of that name; for `usefixtures`."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
