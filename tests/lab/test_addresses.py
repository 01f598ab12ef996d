"""Nodes with several addresses: the one that answers is used, and another machine is never taken for the node."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.lab.moving import MB, Running, auto, fresh, make, nothing_runs, rrmove
from tests.lab.profiles import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.cluster import Lab
    from tests.lab.fixtures import MakeLab
    from tests.lab.moving import Done, File

pytestmark = pytest.mark.lab

CLIENTS = ("auto", "openssh", "paramiko")
SOME = ("auto", *(pytest.param(name, marks=pytest.mark.campaign) for name in CLIENTS[1:]))  # a sample
NODES = (
    Profile("twin", rate="160mbit", rtt_ms=20, open_ports=(8780,)),
    Profile("stranger", rate="160mbit", rtt_ms=20),
    Profile("behind", jump="stranger"),
)


@pytest.fixture
def here(lab: MakeLab) -> Lab:
    return fresh(lab(*NODES))


@pytest.fixture
def second(here: Lab) -> Iterator[str]:
    """A second address of the node `twin`, for as long as a test runs."""
    address = here.address("twin").rpartition(".")[0] + ".220"
    here.on("twin", ["ip", "addr", "add", f"{address}/24", "dev", "eth0"])
    yield address
    here.on("twin", ["ip", "addr", "del", f"{address}/24", "dev", "eth0"])


@pytest.fixture
def small(tmp_path: Path) -> File:
    return make(tmp_path / "small", MB)


def inventory(tmp_path: Path, node: str, *addresses: tuple[str, str]) -> Path:
    words = ", ".join(f'{{ host = "{host}", kind = "{kind}" }}' for host, kind in addresses)
    path = tmp_path / "rrmove.toml"
    path.write_text(f"[nodes.{node}]\naddresses = [{words}]\n")
    return path


@contextmanager
def shut(lab: Lab, address: str) -> Iterator[None]:
    """Make a black hole of an address of `twin`: what stands there is reset, what comes new vanishes."""
    began = f"ip daddr {address} tcp dport 22"
    rules = [f"{began} counter drop", f"{began} ct state established reject with tcp reset"]
    for rule in rules:
        lab.on("twin", ["nft", "insert", "rule", "inet", "lab", "input", *rule.split()])
    try:
        yield
    finally:
        said = lab.on("twin", ["nft", "-a", "list", "chain", "inet", "lab", "input"]).stdout
        for line in said.splitlines():
            if f"ip daddr {address} tcp dport 22" in line:
                lab.on("twin", ["nft", "delete", "rule", "inet", "lab", "input", "handle", line.split()[-1]])


def vanished(lab: Lab, address: str) -> int:
    """How many packets have gone into the hole at an address so far."""
    said = lab.on("twin", ["nft", "list", "chain", "inet", "lab", "input"]).stdout
    (line,) = [line for line in said.splitlines() if f"ip daddr {address} tcp dport 22 counter" in line]
    return int(line.split("packets ")[1].split()[0])


def logins(lab: Lab, node: str) -> int:
    return lab.sshd_log(node).count("Accepted publickey")


def reached(done: Done) -> list[dict[str, object]]:
    return [event for event in map(_read, done.out.splitlines()) if event["event"] == "reached"]


def _read(line: str) -> dict[str, object]:
    import json

    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def here_whole(lab: Lab, source: File, node: str, name: str, done: Done) -> None:
    assert done.code == 0, done.err
    assert lab.sha256(node, f"/root/{name}") == source.digest


@pytest.mark.parametrize("ssh", CLIENTS)
def test_a_black_hole_is_passed_and_not_tried_again(
    here: Lab, second: str, small: File, tmp_path: Path, ssh: str
) -> None:
    """The first address swallows everything, the second is good; the second move goes straight to it."""
    own, nodes = here.address("twin"), inventory(tmp_path, "twin", (second, "tailscale"))
    options = ("--ssh", ssh, "--nodes", str(nodes))
    with shut(here, own):
        first = auto(here, small, "twin:/root/one", *options)
        here_whole(here, small, "twin", "one", first)
        lost = vanished(here, own)
        assert lost >= 1
        (seen,) = reached(first)
        assert seen["address"] == f"{second} port 22"
        assert "no answer within" in str(seen["tried"])
        again = auto(here, small, "twin:/root/two", *options)
        here_whole(here, small, "twin", "two", again)
        assert vanished(here, own) == lost, "the dead address was tried again"
    nothing_runs(here, "twin")


@pytest.mark.parametrize("ssh", SOME)
def test_the_address_in_use_dies_and_the_move_goes_on_over_the_other(
    here: Lab, second: str, tmp_path: Path, ssh: str
) -> None:
    large = make(tmp_path / "large", 24 * MB)
    nodes = inventory(tmp_path, "twin", (second, "lan"))
    options = ("--only", "chunked", "--ssh", ssh, "--nodes", str(nodes))
    with Running(here, large, "twin:/root/large", *options) as move:
        move.until(0.3)
        with shut(here, second):
            done = move.done()
            assert vanished(here, second) >= 1
    here_whole(here, large, "twin", "large", done)
    assert [seen["address"] for seen in reached(done)] == [f"{second} port 22", f"{here.address('twin')} port 22"]
    assert done.last["bytes_sent"] < 1.5 * large.size
    nothing_runs(here)  # the node waits for a connection that it believes in


@pytest.mark.parametrize("ssh", SOME)
def test_another_machine_at_an_address_is_never_used(here: Lab, small: File, tmp_path: Path, ssh: str) -> None:
    """It is left out, which is said, and the next move does not even ask it."""
    nodes = inventory(tmp_path, "twin", (here.address("stranger"), "lan"))
    before = logins(here, "stranger")
    options = ("--ssh", ssh, "--nodes", nodes)
    done = rrmove(here, "auto", *options, "--", small.path, "twin:/root/one")
    here_whole(here, small, "twin", "one", done)
    assert f"the machine at {here.address('stranger')} port 22 shows another host key" in done.err
    assert here.connects("stranger") > 0
    assert logins(here, "stranger") == before
    asked = here.connects("stranger")
    done = rrmove(here, "auto", *options, "--", small.path, "twin:/root/two")
    here_whole(here, small, "twin", "two", done)
    assert here.connects("stranger") == asked


def test_no_first_key_is_taken_for_the_nodes(here: Lab, small: File, tmp_path: Path) -> None:
    """Where ssh_config takes unknown keys, only its own address can bring one."""
    config, known = tmp_path / "config", tmp_path / "known_hosts"
    kept = [line for line in here.ssh_config.read_text().splitlines() if "UserKnownHostsFile" not in line]
    config.write_text(
        "\n".join(kept).replace("User root", f"User root\n  UserKnownHostsFile {known}\n  StrictHostKeyChecking no")
    )
    nodes = inventory(tmp_path, "twin", (here.address("stranger"), "lan"))
    before = here.connects("stranger")
    for name, ssh in (("one", "openssh"), ("two", "openssh"), ("three", "paramiko")):
        done = rrmove(
            here, "auto", "-F", config, "--ssh", ssh, "--nodes", nodes, "--", small.path, f"twin:/root/{name}"
        )
        here_whole(here, small, "twin", name, done)
        if name == "one":
            assert here.connects("stranger") == before
            assert known.exists()
            assert "shows another host key" not in done.err
            here.forget()
    assert here.connects("stranger") == before + 1  # once the key is known, it may be asked, and is found out
    assert logins(here, "stranger") == 0


def test_where_every_address_shows_another_key_the_error_is_the_usual_one(
    here: Lab, second: str, small: File, tmp_path: Path
) -> None:
    nodes = inventory(tmp_path, "twin", (second, "lan"))
    here.change_host_key("twin")
    done = auto(here, small, "twin:/root/one", "--nodes", str(nodes))
    assert done.code == 1
    assert "the host key is not the one that is known" in done.err
    assert here.sha256("twin", "/root/one") is None
    known = here.ssh_config.with_name("known_hosts")
    key = here.on("twin", ["ssh-keyscan", "-t", "ed25519", here.address("twin")]).stdout
    known.write_text(
        "\n".join(line for line in known.read_text().splitlines() if not line.startswith(here.address("twin") + " "))
        + "\n"
        + key
    )


def test_behind_a_jump_host_nothing_is_raced(here: Lab, second: str, small: File, tmp_path: Path) -> None:
    nodes = inventory(tmp_path, "behind", (second, "lan"))
    before = here.connects("twin")
    done = auto(here, small, "behind:/root/one", "--nodes", str(nodes))
    here_whole(here, small, "behind", "one", done)
    assert not reached(done)
    assert here.connects("twin") == before


@pytest.mark.parametrize("transport", ["rsync", "http"])
def test_programs_and_the_data_port_take_the_address_that_answers(
    here: Lab, second: str, small: File, tmp_path: Path, transport: str
) -> None:
    nodes = inventory(tmp_path, "twin", (second, "tailscale"))
    with shut(here, here.address("twin")):
        done = auto(here, small, "twin:/root/one", "--only", transport, "--nodes", str(nodes))
        here_whole(here, small, "twin", "one", done)
        assert vanished(here, here.address("twin")) >= 1
    assert done.last["transport"] == transport


def test_probe_and_nodes_show_the_addresses(here: Lab, second: str, tmp_path: Path) -> None:
    nodes = inventory(tmp_path, "twin", (second, "tailscale"))
    with shut(here, here.address("twin")):
        shown = rrmove(here, "probe", "--nodes", nodes, "twin").out
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == ["address"]]
    assert f"{second} port 22: used, answers after" in line
    assert f"{here.address('twin')} port 22: no answer within" in line
    listed = rrmove(here, "nodes", "--nodes", nodes).out
    assert listed.splitlines()[0].endswith("FURTHER ADDRESSES  LAST USED")
    assert f"{second} port 22" in listed
