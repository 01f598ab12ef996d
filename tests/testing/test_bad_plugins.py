"""Twelve bad plugins: the suite says what to mend in each, and a real move goes on without them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rrmove.testing import EmbeddedNode

BAD = Path(__file__).parent / "bad"
NAMES = sorted(path.stem for path in BAD.glob("bad_*.py"))
SUITE = """
from importlib import import_module
import pytest
from courier import Courier
from rrmove.testing import TransportSuite

def joined(plugin):
    class TestBad(TransportSuite):
        patience = 1.0

        @pytest.fixture
        def transport(self):
            if plugin in {"bad_import", "bad_slow"}:  # these cannot be had: what is installed is looked at
                stand_in = Courier()
                stand_in.name = plugin
                return stand_in
            return import_module(plugin).Plugin()
    return TestBad

"""
LOADED = "test_its_distribution_is_fit_to_be_loaded"
# The plugin, the check of the suite that finds it, and what that says.
SUITE_SAYS = [
    ("bad_import", LOADED, "cannot be loaded: ModuleNotFoundError: No module named 'no_such_mod.* Try `.*pip install"),
    ("bad_version", LOADED, "its api_version is 99; this rrmove speaks 1. Upgrade both"),
    ("bad_version", "test_it_is_fit_to_be_loaded", "its api_version is 99; this rrmove speaks 1"),
    ("bad_twice", LOADED, "the name 'bad_twice' is registered by other-bad-twice too"),
    ("bad_slow", LOADED, "its import takes longer than 3 s. .*import what is slow in send()"),
    ("bad_raise", "test_files_of_all_sizes_arrive", "ZeroDivisionError escaped from send.*Catch it there, and raise"),
    ("bad_refuse", "test_it_refuses_nothing_for_want_of_facts", r"refuse\(\) raised \w+Error.*look before you use it"),
    ("bad_hang", "test_files_of_all_sizes_arrive", "neither ended nor reported a byte for 1 s. Give what you wait for"),
    ("bad_block", "test_files_of_all_sizes_arrive", "it blocked the event loop for 1 s. Await what takes time"),
    ("bad_lie", "test_files_of_all_sizes_arrive", r"it returned, and the part file is not the source \(1 byte"),
    (
        "bad_leak",
        "test_done_it_leaves_nothing",
        r"left processes on this machine behind: sleep 432.1. Kill what you st",
    ),
    ("bad_exit", "test_files_of_all_sizes_arrive", r"it called sys.exit\(\). Raise a TransportError instead"),
    ("bad_print", "test_done_it_leaves_nothing", r"it printed 'sending.*' to stdout.*Print to stderr"),
]


def install(site: Path, names: list[str]) -> Path:
    """Put the plugins on a path, each with a distribution of its own, as pip would."""
    site.mkdir()
    (site / "courier.py").write_text((BAD / "courier.py").read_text())
    for name in names:
        (site / f"{name}.py").write_text((BAD / f"{name}.py").read_text())
        for distribution in [name, f"other_{name}"] if name == "bad_twice" else [name]:
            info = site / f"{distribution}-1.0.dist-info"
            info.mkdir()
            (info / "entry_points.txt").write_text(f"[rrmove.transports]\n{name} = {name}:Plugin\n")
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {distribution.replace('_', '-')}\nVersion: 1.0\n"
            )
    return site


def environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site)}


def test_there_are_twelve() -> None:
    assert len(NAMES) == 12
    assert {name for name, _, _ in SUITE_SAYS} == set(NAMES)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the suite says of them all, in one run; the slow one is by itself, as all others would wait for it."""
    words = ""
    for group in ([name for name in NAMES if name != "bad_slow"], ["bad_slow"]):
        folder = tmp_path_factory.mktemp("suite")
        site = install(folder / "site", group)
        classes = [f'Test_{name} = joined("{name}")' for name in group]
        (folder / "test_bad.py").write_text(SUITE + "\n".join(classes))
        wanted = [f"test_bad.py::Test_{name}::{check}" for name, check, _ in SUITE_SAYS if name in group]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", folder, *wanted],
            cwd=folder,
            env=environment(site),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert "passed" not in done.stdout.splitlines()[-1], done.stdout
        words += done.stdout
    return words


@pytest.mark.parametrize(("name", "check", "message"), SUITE_SAYS)
def test_the_suite_says_what_to_mend(said: str, name: str, check: str, message: str) -> None:
    report = re.search(
        rf"^_+ (?:ERROR at setup of )?Test_{name}\.{check} _+$(.*?)^(?:_|=)", said, re.MULTILINE | re.DOTALL
    )
    assert report is not None
    assert re.search(message, report[1]), report[1]


# A real move

SCRIPT = """
import dataclasses, json, sys
import rrmove
source, config, folder = sys.argv[1:]
outcome = rrmove.move_sync(
    source, "gpu", inventory=rrmove.load_inventory(ssh_config=__import__("pathlib").Path(config)), patience=1.0,
    without=("rsync",),
)
json.dump([[attempt.transport, attempt.error] for attempt in outcome.attempts], sys.stdout)
"""
CONTAINED = {
    "bad_raise": "bad_raise failed unexpectedly: ZeroDivisionError: no way to gpu at .*bad_raise.py:",
    "bad_lie": "bad_lie returned as if all were there, but 3000001 bytes are missing on the node",
    "bad_leak": "it was told to give up",
    "bad_exit": r"bad_exit wanted to end the program \(SystemExit 0\)",
    "bad_print": "it was told to give up",
}
REFUSED = {
    "bad_import": "it cannot be loaded: ModuleNotFoundError",
    "bad_version": "its api_version is 99; this rrmove speaks 1",
    "bad_twice": "the name 'bad_twice' is registered by",
    "bad_refuse": r"its refuse\(\) failed: ",
    "bad_slow": "its import takes longer than 3 s",
}
HANGING = {
    "bad_hang": "bad_hang moved nothing for 1 s and was stopped",
    "bad_block": "bad_block failed unexpectedly: Blocked: bad_block blocked the event loop for 1 s instead of awaiting",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    path.write_bytes(os.urandom(3_000_001))
    return path


def test_a_real_move_goes_on_without_them(tmp_path: Path, source: Path) -> None:
    site = install(tmp_path / "site", sorted({*CONTAINED, *REFUSED}))
    with EmbeddedNode(name="gpu") as node:
        told = [f"{name}.give_up=yes" for name in ("bad_leak", "bad_print")]
        options = [word for each in told for word in ("-o", each)]
        words = ["auto", source, "gpu", "--json", "-F", node.ssh_config, "--without", "rsync", *options]
        done = subprocess.run(
            [sys.executable, "-m", "rrmove", *map(str, words)],
            env=environment(site),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (node.home / "model.pth").read_bytes() == source.read_bytes()
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]  # nothing else is on stdout
    outcome = lines[-1]
    assert outcome["ok"]
    assert outcome["transport"] == "chunked"
    errors = {attempt["transport"]: attempt["error"] or "" for attempt in outcome["attempts"]}
    assert set(errors) == {*CONTAINED, "chunked"}
    for name, message in CONTAINED.items():
        assert re.search(message, errors[name]), errors[name]
    refusals = {refusal["transport"]: refusal["reason"] for refusal in outcome["refusals"]}
    for name, message in REFUSED.items():
        assert re.search(message, refusals[name]), refusals[name]
    # What two of them did besides
    assert "really sending" in done.stderr
    (left,) = [line for line in lines if line["event"] == "left_behind"]
    assert (left["transport"], left["processes"]) == ("bad_leak", ["sleep 432.1"])
    assert subprocess.run(["pgrep", "-f", "sleep 432.1"], capture_output=True, check=False).returncode == 1


def test_a_real_move_goes_on_after_those_that_hang(tmp_path: Path, source: Path) -> None:
    site = install(tmp_path / "site", sorted(HANGING))
    with EmbeddedNode(name="gpu") as node:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, source, node.ssh_config, tmp_path],
            env=environment(site),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (node.home / "model.pth").read_bytes() == source.read_bytes()
    errors = dict(json.loads(done.stdout))
    assert set(errors) == {*HANGING, "chunked"}
    for name, message in HANGING.items():
        assert message in errors[name]


def test_they_can_be_switched_off(tmp_path: Path) -> None:
    site = install(tmp_path / "site", ["bad_slow", "bad_raise"])
    argv = [sys.executable, "-m", "rrmove", "plugins", "--json"]
    environ = {**environment(site), "RRMOVE_PLUGINS": "none"}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=20, check=True)
    rows = {row["name"]: row["problem"] for row in map(json.loads, done.stdout.splitlines())}
    assert rows["bad_slow"] == rows["bad_raise"] == "it is switched off by $RRMOVE_PLUGINS"
