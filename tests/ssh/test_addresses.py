"""Which addresses a connect tries and in which order, what is left out, and how ssh is told."""

from __future__ import annotations

import shlex
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rrmove.errors import Fatal
from rrmove.model import Address, Node, SSHSettings
from rrmove.retry import ask
from rrmove.ssh.addresses import Addresses, Answered
from rrmove.ssh.config import parse_ssh_g
from rrmove.ssh.failures import HostKeyError, NoLogin, NotTheNode
from rrmove.ssh.login import SSHSession
from rrmove.testing import EmbeddedNode

if TYPE_CHECKING:
    from rrmove.ssh.addresses import Course
    from rrmove.ssh.login import Client

NODE = Node(
    name="gpu",
    addresses=(
        Address("100.64.0.7", "tailscale"),
        Address("gpu", "public"),  # its own name is no further address
        Address("198.51.100.7", "public", 2222),
        Address("10.0.0.7", "lan"),
    ),
)
OWN, LAN, PUBLIC, TAIL = ("203.0.113.9", 22022), ("10.0.0.7", 22022), ("198.51.100.7", 2222), ("100.64.0.7", 22022)


def course(node: Node = NODE, *lines: str, last: Answered | None = None) -> Course | None:
    return told(node, *lines, last=last).course()


def told(node: Node = NODE, *lines: str, last: Answered | None = None) -> Addresses:
    addresses = Addresses(node, last=last)
    addresses.learn(parse_ssh_g("\n".join(("hostname 203.0.113.9", "port 22022", "user me", *lines))))
    return addresses


def test_the_nearest_comes_first_and_the_last_one_before_all() -> None:
    plain = course()
    assert plain is not None
    assert plain.places == (LAN, OWN, PUBLIC, TAIL)
    assert (plain.head_start, plain.strict) == (0.25, False)
    known = course(last=Answered("100.64.0.7", "100.64.0.7", 22022, 0.4))
    assert known is not None
    assert known.places == (TAIL, LAN, OWN, PUBLIC)
    assert known.head_start == 0.8
    stale = course(last=Answered("192.0.2.1", "192.0.2.1", 22022, 0.1))  # no address of the node any more
    assert stale is not None
    assert stale.places == plain.places


def test_the_others_are_those_that_are_not_in_use_the_nearest_first() -> None:
    addresses = told()
    own = OWN  # while nobody has answered, SSH goes to its own
    assert addresses.others() == (("10.0.0.7", None), ("198.51.100.7", 2222), ("100.64.0.7", None))
    addresses.dialed(LAN, "10.0.0.7", 0.01, {}).arrived()
    assert addresses.others() == (own, ("198.51.100.7", 2222), ("100.64.0.7", None))
    stranger = addresses.dialed(PUBLIC, "198.51.100.7", 0.01, {})
    stranger.judged(HostKeyError("other key", node="gpu"))
    assert addresses.others() == (own, ("100.64.0.7", None))
    known = told(last=Answered("10.0.0.7", "10.0.0.7", 22022, 0.1))
    assert known.others(last=True) == (own, ("198.51.100.7", 2222), ("100.64.0.7", None))
    assert known.others() == told().others()
    behind = told(NODE, "proxyjump bastion")
    assert behind.others() == (("10.0.0.7", None), ("198.51.100.7", 2222), ("100.64.0.7", None))


def test_one_address_has_no_others() -> None:
    assert told(Node(name="gpu", ssh=SSHSettings(host="203.0.113.9"))).others() == ()


@pytest.mark.parametrize(
    "line",
    [
        "proxyjump bastion",
        "proxycommand nc %h %p",
        "bindaddress 10.0.0.1",
        "bindinterface eth1",
        "nohostauthenticationforlocalhost yes",
        "stricthostkeychecking accept-new\nuserknownhostsfile /dev/null\nglobalknownhostsfile /dev/null",
        "stricthostkeychecking false\nuserknownhostsfile /dev/null\nglobalknownhostsfile /dev/null",
    ],
)
def test_where_ssh_config_has_a_way_of_its_own_nothing_is_raced(line: str) -> None:
    assert course(NODE, *line.split("\n")) is None


def test_unknown_keys_are_never_accepted_from_a_race(tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("[203.0.113.9]:22022 ssh-ed25519 AAAA\n")
    lines = ("stricthostkeychecking accept-new", f"userknownhostsfile {known}")
    found = course(NODE, *lines)
    assert found is not None
    assert found.strict
    assert found.flags(report=False)[-2:] == ("-o", "StrictHostKeyChecking=yes")


def test_one_address_is_no_race() -> None:
    assert course(Node(name="gpu", addresses=(Address("203.0.113.9"),), ssh=SSHSettings(host="203.0.113.9"))) is None
    assert course(Node(name="gpu")) is None


def test_another_machine_is_left_out_and_the_last_word_is_ssh_configs() -> None:
    addresses = told()
    key = HostKeyError("the host key is not the one that is known", node="gpu", remedy="Look.")
    changes: list[dict[str, str]] = []
    addresses.watch(lambda: changes.append(addresses.told))
    for host, port in (LAN, OWN, PUBLIC, TAIL):
        dialed = addresses.dialed((host, port), host, 0.01, {f"{host} port {port}": "answers after 10 ms"})
        assert isinstance(dialed.judged(key), NotTheNode)
        left = addresses.course()
        assert left is None or (host, port) not in left.places
        assert addresses.answered is None
    assert addresses.course() is None
    assert len(changes) == 4
    assert set(changes[-1].values()) == {"shows another host key: it is not this node"}


def test_other_ends_of_a_login_leave_nothing_out() -> None:
    addresses = told()
    dialed = addresses.dialed(LAN, LAN[0], 0.01, {})
    error = Fatal("authentication was refused")
    assert dialed.judged(error) is error
    dialed.arrived()
    assert addresses.used is not None
    found = addresses.course()
    assert found is not None
    assert found.places[0] == LAN


def test_a_login_is_kept_and_a_mere_answer_is_not() -> None:
    kept: list[Answered] = []
    addresses = Addresses(NODE, keep=kept.append)
    addresses.learn(parse_ssh_g("hostname gpu.example\nport 22\nuser me"))
    dialed = addresses.dialed(("gpu.example", 22), "203.0.113.9", 0.01, {})
    assert not kept
    dialed.arrived()
    dialed.arrived()
    assert kept == [Answered("gpu.example", "203.0.113.9", 22, 0.01)]
    found = addresses.course()
    assert found is not None
    assert found.places[0] == ("203.0.113.9", 22)
    again = addresses.dialed(("203.0.113.9", 22), "203.0.113.9", 0.02, {})
    assert again.answered.host == "gpu.example"


def test_ssh_is_told_in_one_word_that_a_shell_takes_apart() -> None:
    found = course(replace_hosts("fe80::1%eth0", "a b"), "addressfamily inet6")
    assert found is not None
    flags = found.flags(report=True)
    command = flags[1].removeprefix("ProxyCommand=")
    assert "'" not in command
    words = shlex.split(command.replace("%%", "%"))
    assert words[-2:] == ["fe80::1%eth0,22022", "203.0.113.9,22022"]
    assert "-6" in words
    assert flags[2:4] == ("-o", "ProxyUseFdpass=yes")


@pytest.mark.parametrize("client", ["own", "auto", "openssh"])
async def test_where_nobody_answers_each_address_is_named(tmp_path: Path, client: Client) -> None:
    with socket.socket() as one, socket.socket() as other:
        ports = []
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))  # and does not listen
            ports.append(sock.getsockname()[1])
        config = tmp_path / "config"
        config.write_text(f"Host gpu\n  HostName 127.0.0.1\n  Port {ports[0]}\n")
        node = Node(name="gpu", addresses=(Address("127.0.0.1", "lan", ports[1]),), ssh=SSHSettings(config=config))
        async with SSHSession(node, client=client) as session:
            with pytest.raises(NoLogin, match="no SSH server answers at any of its addresses") as caught:
                await (await session.control()).ready()
    for port in ports:
        assert f"127.0.0.1 port {port}: Connection refused" in str(caught.value)


def replace_hosts(*hosts: str) -> Node:
    return Node(name="gpu", addresses=tuple(Address(host, "lan") for host in hosts if " " not in host))


@pytest.mark.parametrize("client", ["own", "auto", "openssh"])
async def test_addresses_that_come_later_save_a_login_that_hangs(tmp_path: Path, client: Client) -> None:
    """ssh_config's own address is a black hole; a plugin knows the other one once the login has begun."""
    with EmbeddedNode() as server, socket.create_server(("127.0.0.1", 0), backlog=0) as hole:
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        time.sleep(0.05)
        text = server.ssh_config.read_text()
        port = next(int(line.split()[1]) for line in text.splitlines() if line.split()[:1] == ["Port"])
        config = tmp_path / "config"
        known = next(line.split()[1] for line in text.splitlines() if "UserKnownHostsFile" in line)
        config.write_text(
            text.replace(f"Port {port}", f"Port {hole.getsockname()[1]}").rstrip() + "\n  HostKeyAlias rrmove-test\n"
        )
        keys = [line.split(" ", 1)[1] for line in Path(known.strip('"')).read_text().splitlines()]
        mine = tmp_path / "known_hosts"
        mine.write_text("".join(f"rrmove-test {key}\n" for key in keys))
        config.write_text(config.read_text().replace(known, str(mine)))
        node = Node(name=server.name, ssh=SSHSettings(config=config))
        async with SSHSession(node, client=client) as session:
            await session.control()
            session.know([Address("127.0.0.1", "lan", port)])
            began = time.monotonic()
            await ask(session, "hello")
            assert time.monotonic() - began < 8
            assert await session.address() == ("127.0.0.1", port)
            assert session.addresses.used is not None
        for filler in fillers:
            filler.close()
