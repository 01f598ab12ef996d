"""What is not needed is not imported: a command line is parsed before anything heavy is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.scripted import environment

HEAVY = {"asyncio", "rich", "paramiko", "stevedore", "pluggy", "sqlite3", "ssl", "importlib.metadata", "shtab"}
HEAVY |= {"aiohttp", "cryptography", "uvloop", "prometheus_client"}
SCRIPT = """
import sys
from rrmove.cli import main
code = main({argv!r})
print("\\n".join(["loaded:", *sys.modules]))
"""


@pytest.mark.parametrize(
    ("argv", "allowed"),
    [
        (["--help"], set()),
        (["auto", "--help"], set()),
        (["auto", "f", "gpu", "--limit-rate", "50X"], set()),
        (["serve", "--help"], set()),
        (["serve", "--root", "x=/nowhere", "--port", "x"], set()),
        (["serve", "--openapi"], set()),
        (["completion", "bash"], {"shtab", "importlib.metadata"}),
        (["nodes", "--names"], {"asyncio", "ssl", "importlib.metadata"}),  # plugins may know nodes
    ],
)
def test_what_a_command_loads(argv: list[str], allowed: set[str]) -> None:
    said = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT.format(argv=argv)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    loaded = set(said.stdout.partition("loaded:\n")[2].split())
    assert "rrmove.cli.parser" in loaded
    assert loaded & (HEAVY - allowed) == set()


def test_the_module_runs_as_the_command_does() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "rrmove", "--version"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert said.stdout.startswith("rrmove ")
