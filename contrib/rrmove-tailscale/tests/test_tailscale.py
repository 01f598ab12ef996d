"""rrmove-tailscale: its parser over cases, and its hooks beside rrmove with a `tailscale` program that says them.

The cases were written after Tailscale's documentation; none was recorded from a tailnet.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import rrmove_tailscale as hooks

import rrmove
from rrmove.testing import EmbeddedNode

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH = ["100.101.102.3", "fd7a:115c:a1e0::3"]
CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))


@pytest.fixture
def tailscale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give a function that puts a shell script of that text on PATH, as `tailscale`."""

    def installed(text: str) -> None:
        program = tmp_path / "tailscale"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return installed


def case(name: str) -> Any:
    return json.loads((Path(__file__).parent / f"cases/{name}.json").read_text())


def saying(name: str, tmp_path: Path) -> str:
    (tmp_path / "answer").write_text(json.dumps(case(name)["status"]))
    return f'[ "$*" = "status --json" ] && cat {tmp_path / "answer"}'


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_answers_of_the_daemon(path: Path) -> None:
    document = json.loads(path.read_text())
    nodes = [hooks.node(peer) for peer in hooks.peers(document["status"])]
    assert document["nodes"] == [
        {
            "name": node.name,
            "ssh": node.ssh.host,
            "addresses": [address.host for address in node.addresses],
            "tags": sorted(node.tags),
        }
        for node in nodes
    ]
    assert {address.kind for node in nodes for address in node.addresses} <= {"tailscale"}


@pytest.mark.parametrize("answer", [None, [], 7, "x", {}, {"BackendState": "Running", "Peer": []}])
def test_nonsense_has_no_peers(answer: object) -> None:
    assert hooks.peers(answer) == ()


@pytest.mark.parametrize(
    ("node", "hosts"),
    [
        (rrmove.Node(name="GPU-3"), BOTH),
        (rrmove.Node(name="trainer", ssh=rrmove.SSHSettings(host="gpu-3.tail0000.ts.net")), BOTH),
        (rrmove.Node(name="trainer", addresses=(rrmove.Address("100.101.102.3"),)), BOTH),
        (rrmove.Node(name="gpu-4"), []),  # it is offline
        (rrmove.Node(name="stranger"), []),
    ],
)
def test_whose_addresses_are_known(
    node: rrmove.Node, hosts: list[str], tailscale: Callable[[str], None], tmp_path: Path
) -> None:
    tailscale(saying("running", tmp_path))
    assert [address.host for address in hooks.rrmove_addresses(node)] == hosts


def test_of_two_with_one_name_neither_is_guessed(tailscale: Callable[[str], None], tmp_path: Path) -> None:
    tailscale(saying("two-of-one-host-name", tmp_path))
    assert hooks.rrmove_addresses(rrmove.Node(name="gpu-3")) == []
    assert [a.host for a in hooks.rrmove_addresses(rrmove.Node(name="gpu-3-1"))] == ["100.101.102.6"]


def test_without_tailscale_there_is_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hooks.rrmove_nodes() == []
    assert hooks.rrmove_addresses(rrmove.Node(name="gpu-3")) == []


def test_a_daemon_that_does_not_answer(
    tailscale: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tailscale("echo 'failed to connect to local tailscaled' >&2; exit 1")
    with pytest.raises(OSError, match="failed to connect"):
        hooks.rrmove_nodes()
    monkeypatch.setattr(hooks, "PATIENCE", 0.1)
    tailscale("exec sleep 10")
    with pytest.raises(subprocess.TimeoutExpired):
        hooks.rrmove_nodes()
    # rrmove says so, and goes on without.
    (tmp_path / "ssh_config").write_text("Host one\n  HostName 192.0.2.1\n")
    assert rrmove.load_inventory(ssh_config=tmp_path / "ssh_config").names() == ("one",)


def test_rrmove_finds_the_peers_and_moves_to_one(tailscale: Callable[[str], None], tmp_path: Path) -> None:
    source = tmp_path / "model.pth"
    source.write_bytes(b"x" * 1000)
    tailscale(saying("running", tmp_path))
    with EmbeddedNode(name="gpu-3.tail0000.ts.net") as embedded:
        inventory = rrmove.load_inventory(ssh_config=embedded.ssh_config)
        assert {"gpu-3", "annas-macbook"} <= set(inventory.names())
        ((tagged, _),) = inventory.resolve("@trainer")
        assert tagged.name == "gpu-3"
        outcome = rrmove.move_sync(source, "gpu-3", inventory=inventory)
        assert (embedded.home / "model.pth").read_bytes() == source.read_bytes()
    assert [address.host for address in outcome.request.node.addresses] == BOTH
