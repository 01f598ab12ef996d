"""Nodes from TOML and ssh_config, and the grammar of targets."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rrmove
from rrmove.errors import UsageError
from rrmove.inventory import Inventory, Target, load_inventory, parse_target
from rrmove.model import Address, Limit, Node, Ports
from rrmove.nodefile import address_kind

if TYPE_CHECKING:
    from collections.abc import Mapping

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh program")

TOML = """
[defaults]
dest = "/data"
limit_rate = "100M"
user = "everyone"

[providers.nebius]
limit_rate = "50M"
colour = "blue"

[nodes.nebius-h100-3]
host = "203.0.113.9"
port = 22022
user = "ubuntu"
identity = "~/.ssh/id_cluster"
provider = "nebius"
tags = ["gpu", "eu"]
addresses = ["100.64.0.7", "10.1.2.3", { host = "198.51.100.4", kind = "lan" }, "203.0.113.9"]
data_port = 8790
torrent_port = 6890
rack = 7

[nodes.box]
tags = ["gpu"]
dest = "/srv"
identity = "keys/id"

[nodes."gpu.example.com"]
[nodes.aliased]
host = "sshalias"
"""
SSH_CONFIG = """
Host sshalias other
  HostName 203.0.113.50
  User fromssh
Host gpu-*
  HostName %h.invalid
Host *
  IdentitiesOnly yes
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    return write(tmp_path, TOML)


def write(folder: Path, text: str) -> Inventory:
    (folder / "rrmove.toml").write_text(text)
    (folder / "ssh_config").write_text(SSH_CONFIG)
    return load_inventory(folder / "rrmove.toml", ssh_config=folder / "ssh_config")


def test_a_node_has_everything_that_can_be_written(inventory: Inventory, tmp_path: Path) -> None:
    node = inventory.nodes["nebius-h100-3"]
    assert node.addresses == (
        Address("203.0.113.9", "public"),
        Address("100.64.0.7", "tailscale"),
        Address("10.1.2.3", "lan"),
        Address("198.51.100.4", "lan"),
    )
    assert (node.ssh.host, node.ssh.port, node.ssh.user) == ("203.0.113.9", 22022, "ubuntu")
    assert node.ssh.identity == Path("~/.ssh/id_cluster").expanduser()
    assert node.ssh.config == tmp_path / "ssh_config"
    assert node.tags == {"gpu", "eu"}
    assert node.ports == Ports(8790, 6890)
    assert node.extra == {"rack": 7, "colour": "blue"}


def test_the_node_comes_before_its_provider_and_that_before_the_defaults(inventory: Inventory) -> None:
    nebius, box = inventory.nodes["nebius-h100-3"], inventory.nodes["box"]
    assert nebius.limits == (Limit("provider nebius", 50e6), Limit("all nodes", 100e6))
    assert box.limits == (Limit("all nodes", 100e6),)
    assert (nebius.ceiling, box.ceiling) == (50e6, 100e6)
    assert inventory.nodes["box"].destination == "/srv"
    assert inventory.nodes["nebius-h100-3"].destination == "/data"
    assert inventory.nodes["box"].ssh.user == "everyone"
    assert inventory.nodes["box"].ports == Ports()


def test_what_is_an_address_and_what_only_ssh_knows(inventory: Inventory, tmp_path: Path) -> None:
    assert inventory.nodes["gpu.example.com"].addresses == (Address("gpu.example.com"),)
    assert inventory.nodes["box"].addresses == ()
    assert inventory.nodes["aliased"].addresses == ()
    assert inventory.nodes["aliased"].ssh.host == "sshalias"
    assert inventory.nodes["box"].ssh.identity == tmp_path / "keys/id"


def test_defaults_of_a_provider_that_the_defaults_name(tmp_path: Path) -> None:
    found = write(tmp_path, '[defaults]\nprovider = "p"\nport = 1\n[providers.p]\nport = 2\n[nodes.a]\n')
    assert (found.nodes["a"].provider, found.nodes["a"].ssh.port) == ("p", 2)


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("100.64.0.1", "tailscale"),
        ("100.127.255.254", "tailscale"),
        ("100.128.0.1", "public"),
        ("10.0.0.1", "lan"),
        ("172.16.0.1", "lan"),
        ("172.32.0.1", "public"),
        ("192.168.1.1", "lan"),
        ("127.0.0.1", "lan"),
        ("203.0.113.9", "public"),
        ("2001:db8::1", "public"),
        ("fd7a:115c:a1e0::7", "tailscale"),
        ("fd00::1", "lan"),
        ("fe80::1%eth0", "lan"),
        ("gpu.example.com", "public"),
        ("gpu.tail1234.ts.net", "tailscale"),
    ],
)
def test_the_kind_of_an_address(host: str, kind: str) -> None:
    assert address_kind(host) == kind


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[nodes.a]\nport = 22 22\n", "line 2"),
        ('[nodes.a]\nuser = "u"\n[nodes.b]\nuser = "u"\nport = "22"\n', "line 5: [nodes.b] port must be a number"),
        ("[nodes.a]\nport = 0\n", "line 2: [nodes.a] port"),
        ("[nodes.a]\nport = true\n", "not true"),
        ("[nodes.a]\nhost = 7\n", "host must be a string, not 7"),
        ('[nodes.a]\nhost = "-oProxyCommand=id"\n', "line 2: [nodes.a] host"),
        ('[nodes.a]\nhost = "me@there"\n', "host must be a host name"),
        ('[nodes.a]\nuser = "a b"\n', "user must be a user name"),
        ('[nodes.a]\ntags = "gpu"\n', "tags must be a list of strings"),
        ("[nodes.a]\ntags = [1]\n", "tags must be a list of strings"),
        ('[nodes.a]\naddresses = "10.0.0.1"\n', "addresses must be a list"),
        ("[nodes.a]\naddresses = [\n  1,\n]\n", "line 2: [nodes.a] addresses must hold"),
        ('[nodes.a]\naddresses = [{host = "h", kind = "moon"}]\n', "none of lan, public, tailscale"),
        ('[nodes.a]\naddresses = ["-x"]\n', "addresses must hold host names"),
        ('[nodes.a]\nlimit_rate = "fast"\n', "limit_rate must be a rate"),
        ("[nodes.a]\nlimit_rate = -5\n", "limit_rate must be a rate above zero"),
        ("[nodes.a]\nlimit_rate = []\n", "limit_rate must be a rate"),
        ("[nodes.a]\ndata_port = 70000\n", "data_port must be a number from 1 to 65535"),
        ('[defaults]\nport = "x"\n[nodes.a]\n', "line 2: [defaults] port"),
        ('# one\n[providers."p"]\n"port" = "x"\n[nodes.a]\nprovider = "p"\n', "line 3: [providers.p] port"),
        ("nodes = 3\n", "line 1: nodes must be a table"),
        ("[nodes]\na = 3\n", "line 2: [nodes] a must be a table"),
        ('[nodes]\n"-a" = {}\n', "'-a' cannot name a node"),
        ('[nodes.a.b]\n[nodes]\nb.port = "x"\n', "line 3"),
        ("[nodes]\nb = 2\n[nodes.c]\n", "line 2"),
        ('# x\n[nodes]\nb = { port = "x" }\n', "line 3"),
        ('[[nodes]]\nhost = "x"\n', "line 1: nodes must be a table"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        write(tmp_path, text)
    assert said in str(caught.value)
    assert str(tmp_path / "rrmove.toml") in str(caught.value)


def test_numbers_are_rates_too(tmp_path: Path) -> None:
    assert write(tmp_path, "[nodes.a]\nlimit_rate = 5_000_000\n").nodes["a"].limit_rate == 5e6
    assert write(tmp_path, "[nodes.a]\nlimit_rate = 1e6\n").nodes["a"].limit_rate == 1e6


def test_the_order_of_the_search(tmp_path: Path) -> None:
    home, cwd, config = tmp_path / "home", tmp_path / "cwd", tmp_path / "config"
    for folder in (home / ".config/rrmove", cwd, config / "rrmove"):
        folder.mkdir(parents=True)
    environ = {"HOME": str(home)}

    def name_of(extra: Mapping[str, str] | None = None, path: Path | None = None) -> list[str]:
        return list(load_inventory(path, environ={**environ, **(extra or {})}, cwd=cwd).nodes)

    assert name_of() == []
    (home / ".config/rrmove/nodes.toml").write_text("[nodes.home]\n")
    assert name_of() == ["home"]
    (config / "rrmove/rrmove.toml").write_text("[nodes.config]\n")
    assert name_of({"XDG_CONFIG_HOME": str(config)}) == ["config"]
    (cwd / "rrmove.toml").write_text("[nodes.cwd]\n")
    assert name_of() == ["cwd"]
    (tmp_path / "named.toml").write_text("[nodes.named]\n")
    assert name_of({"RRMOVE_NODES": str(tmp_path / "named.toml")}) == ["named"]
    (tmp_path / "given.toml").write_text("[nodes.given]\n")
    assert name_of({"RRMOVE_NODES": str(tmp_path / "named.toml")}, tmp_path / "given.toml") == ["given"]
    with pytest.raises(UsageError, match="RRMOVE_NODES"):
        name_of({"RRMOVE_NODES": str(tmp_path / "missing.toml")})
    with pytest.raises(UsageError, match="no inventory"):
        name_of(path=tmp_path / "missing.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'[nodes."\xe9"]\n')
    with pytest.raises(UsageError, match="UTF-8"):
        load_inventory(tmp_path / "latin.toml")
    with pytest.raises(UsageError, match="no ssh_config"):
        load_inventory(ssh_config=tmp_path / "missing", environ={}, cwd=tmp_path)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("gpu1", Target("gpu1")),
        ("gpu1:", Target("gpu1")),
        ("gpu1:/data/x", Target("gpu1", path="/data/x")),
        ("gpu1:a:b", Target("gpu1", path="a:b")),
        ("gpu1:dir/u@x", Target("gpu1", path="dir/u@x")),
        ("me@gpu1", Target("gpu1", "me")),
        ("me@gpu1:x", Target("gpu1", "me", path="x")),
        ("me@corp@gpu1:x", Target("gpu1", "me@corp", path="x")),
        ("10.0.0.1:x", Target("10.0.0.1", path="x")),
        ("[2001:db8::1]:x", Target("2001:db8::1", path="x")),
        ("[2001:db8::1]", Target("2001:db8::1")),
        ("me@[2001:db8::1]:/x", Target("2001:db8::1", "me", path="/x")),
        ("2001:db8::1", Target("2001:db8::1")),
        ("me@2001:db8::1", Target("2001:db8::1", "me")),
        ("ssh://gpu1", Target("gpu1")),
        ("ssh://me@gpu1:2200/data/x", Target("gpu1", "me", 2200, "/data/x")),
        ("ssh://gpu1/~/x%20y", Target("gpu1", path="x y")),
        ("ssh://[2001:db8::1]:22/", Target("2001:db8::1", port=22, path="/")),
        ("@gpu", Target(tag="gpu")),
        ("@gpu:/data", Target(tag="gpu", path="/data")),
    ],
)
def test_the_grammar_of_targets(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":path", "@", "@:x", "me@", "@a/b"),
        *("./x", "/x", "../x", ".", "a/b", "a/b:c", "~/x", "dir/gpu1:x", "./gpu1:x"),
        *("-oProxyCommand=id", "me@-x", "-l@gpu1", "a b:x", "gpu1\0:x", "me@[-x]:y", "a;b"),
        *("ssh://", "ssh://:22/x", "ssh://h:0/x", "ssh://h:99999", "ssh://h:x/", "ssh://-x/", "ssh://a@b@c/"),
    ],
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text)


def test_a_local_path_is_told_as_one() -> None:
    with pytest.raises(UsageError, match="is a local path; a target is a node, and pulls come later"):
        parse_target("./model.pth")


hosts = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True)
users = st.from_regex(r"[a-z_][a-z0-9_-]{0,10}", fullmatch=True)
paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(hosts, st.none() | users, paths)
def test_user_host_and_path_come_back(host: str, user: str | None, path: str) -> None:
    who = f"{user}@" if user else ""
    assert parse_target(f"{who}[{host}]:{path}") == Target(host, user, path=path)
    if not path.startswith(":"):  # "a::" is an IPv6 address
        assert parse_target(f"{who}{host}:./{path}") == Target(host, user, path=f"./{path}")


@given(hosts, st.none() | users, st.none() | st.integers(1, 65535), paths)
def test_urls_come_back(host: str, user: str | None, port: int | None, path: str) -> None:
    from urllib.parse import quote

    text = f"ssh://{f'{user}@' if user else ''}{host}{f':{port}' if port else ''}/{quote(path)}"
    expected = path.removeprefix("~/") if path.startswith("~/") else f"/{path}"
    assert parse_target(text) == Target(host, user, port, expected)


@given(st.text())
def test_no_target_makes_an_option_of_ssh(text: str) -> None:
    try:
        target = parse_target(text)
    except UsageError:
        return
    assert not target.host.startswith("-")
    assert not (target.user or "").startswith("-")
    assert bool(target.host) != bool(target.tag)


def resolved(inventory: Inventory, target: str) -> tuple[Node, str]:
    (found,) = inventory.resolve(target)
    return found


def test_the_destination_is_the_path_else_the_nodes_own(inventory: Inventory) -> None:
    assert resolved(inventory, "box") == (inventory.nodes["box"], "/srv")
    assert resolved(inventory, "box:/x")[1] == "/x"
    assert resolved(inventory, "other")[1] == "/data"  # from [defaults]
    assert Inventory().resolve("10.0.0.1")[0][1] == ""


def test_user_and_port_go_over_the_inventorys(inventory: Inventory) -> None:
    node, path = resolved(inventory, "ssh://me@nebius-h100-3:2200/x")
    assert (node.name, node.ssh.user, node.ssh.port, path) == ("nebius-h100-3", "me", 2200, "/x")
    assert node.addresses == inventory.nodes["nebius-h100-3"].addresses


def test_a_plugins_node_shares_the_limit_of_its_provider(tmp_path: Path) -> None:
    known = {"x": (Node(name="x", provider="p"), "plug"), "y": (Node(name="y", limit_rate=1e6), "plug")}
    inventory = write(tmp_path, '[defaults]\nlimit_rate = "9M"\n[providers.p]\nlimit_rate = "2M"\n')
    inventory = replace(inventory, others=lambda: known)
    x, y = (resolved(inventory, name)[0] for name in "xy")
    assert x.limits == (Limit("provider p", 2e6), Limit("all nodes", 9e6))
    assert y.all_limits == (Limit("node y", 1e6), Limit("all nodes", 9e6))


def test_hosts_of_ssh_config_are_nodes(inventory: Inventory, tmp_path: Path) -> None:
    node, _ = resolved(inventory, "sshalias:x")
    assert (node.name, node.addresses, node.ssh.config) == ("sshalias", (), tmp_path / "ssh_config")
    assert node.ssh.user is None  # [defaults] must not go over what ssh_config says
    assert (node.limit_rate, node.limits) == (None, (Limit("all nodes", 100e6),))


def test_hosts_that_nobody_wrote_down(inventory: Inventory) -> None:
    node, _ = resolved(inventory, "me@198.51.100.7:x")
    assert (node.name, node.ssh.user, node.addresses) == ("198.51.100.7", "me", (Address("198.51.100.7"),))
    assert resolved(inventory, "new.example.com")[0].addresses == (Address("new.example.com"),)
    assert resolved(inventory, "localhost")[0].name == "localhost"
    assert resolved(inventory, "2001:db8::7")[0].addresses == (Address("2001:db8::7"),)


@needs_ssh
def test_a_pattern_of_ssh_config_knows_its_hosts(inventory: Inventory) -> None:
    assert resolved(inventory, "gpu-17")[0].name == "gpu-17"


def test_tags_mean_all_their_nodes(inventory: Inventory) -> None:
    found = inventory.resolve("@gpu")
    assert [(node.name, path) for node, path in found] == [("box", "/srv"), ("nebius-h100-3", "/data")]
    assert {path for _, path in inventory.resolve("@gpu:/x")} == {"/x"}
    with pytest.raises(UsageError, match=r"Did you mean @gpu\?"):
        inventory.resolve("@gpus")


def test_an_unknown_node_is_told_with_the_nearest(inventory: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrmove.inventory._resolves", lambda _: False)
    with pytest.raises(UsageError, match=r"unknown node 'nebius-h100-4'.*Did you mean nebius-h100-3\?"):
        inventory.resolve("nebius-h100-4:x")
    with pytest.raises(UsageError, match="Known nodes: aliased, box"):
        inventory.resolve("zzzzzz")
    with pytest.raises(UsageError, match="add some to"):
        Inventory(ssh_config=inventory.ssh_config).resolve("zzzzzz")


@needs_ssh
def test_the_listing(inventory: Inventory) -> None:
    rows = {row.name: row for row in inventory.listing()}
    assert list(rows) == ["aliased", "box", "gpu.example.com", "nebius-h100-3", "sshalias", "other"]
    row = rows["nebius-h100-3"]
    assert (row.host, row.port, row.user) == ("203.0.113.9", 22022, "ubuntu")
    assert (row.provider, row.tags, row.origin) == ("nebius", ("eu", "gpu"), "rrmove.toml")
    assert (rows["other"].host, rows["other"].user, rows["other"].origin) == ("203.0.113.50", "fromssh", "ssh_config")
    assert rows["aliased"].host == "203.0.113.50"


def test_the_listing_without_an_ssh_program(inventory: Inventory) -> None:
    rows = {row.name: row for row in inventory.listing(ask=lambda _: None)}
    assert (rows["nebius-h100-3"].host, rows["other"].host) == ("203.0.113.9", None)


def test_importing_it_is_cheap() -> None:
    code = "import sys, rrmove.inventory; print(*sorted(sys.modules))"
    core = Path(rrmove.__file__).parent.parent  # -S leaves out the editable install as well
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(core)},
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"asyncio", "paramiko", "stevedore", "pluggy", "sqlite3", "importlib.metadata", "tomllib", "subprocess"}
    assert not heavy & set(done.stdout.split())
