"""Ports at a node's other addresses: found and used there, and nothing is given to another machine that listens."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from rrmove.oneshot.certificate import make_certificate
from tests.lab.moving import MB, Running, arrive, fresh, make, nothing_runs, put, rrmove
from tests.lab.processes import wait_until
from tests.lab.profiles import Profile
from tests.lab.test_ports import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.cluster import Lab
    from tests.lab.fixtures import MakeLab
    from tests.lab.moving import Done, File

pytestmark = pytest.mark.lab

PORT = 8780
MESH = "100.64.0.7"  # an address as Tailscale gives them
NODES = (
    Profile("twin", rtt_ms=20, open_ports=(PORT,), routes_back=False),
    Profile("foreign", rtt_ms=5, open_ports=(PORT,)),
    Profile("inner", jump="foreign", routes_back=False),
)
# Counted at the node, at its further address: all that comes, what begins as TLS's greeting does, and as a PUT does
# (the first bytes after a TCP header with timestamps).
COUNTERS = {"everything": "", "greetings": "@th,256,24 0x160301", "puts": "@th,256,32 0x50555420"}
STRANGERS = ("nothing runs", "a data server", "a free port")

LISTENER = """
import socket, ssl, sys
port, certificate, log = int(sys.argv[1]), sys.argv[2], open(sys.argv[3], "ab", buffering=0)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
server = socket.create_server(("", port))
log.write(b"up\\n")
while True:
    raw, _ = server.accept()
    log.write(b"came\\n")
    raw.settimeout(2)
    try:
        greeting = raw.recv(1, socket.MSG_PEEK)
        if greeting == b"\\x16":
            raw = context.wrap_socket(raw, server_side=True)
            log.write(b"greeted\\n")
        while said := raw.recv(65536):
            log.write(b"said " + said + b"\\n")
    except OSError:
        log.write(b"left\\n")
    raw.close()
"""
"""Another machine's server: takes every call, speaks TLS with whoever does, and writes down all that it is told."""


@pytest.fixture
def here(lab: MakeLab) -> Lab:
    return fresh(lab(*NODES))


@pytest.fixture
def source(tmp_path: Path) -> File:
    return make(tmp_path / "model.bin", 12 * MB)


def inventory(tmp_path: Path, node: str, *hosts: str) -> tuple[str, str]:
    path = tmp_path / "rrmove.toml"
    path.write_text(f"[nodes.{node}]\naddresses = {json.dumps(hosts)}\n")
    return "--nodes", str(path)


@contextmanager
def mesh(lab: Lab, node: str) -> Iterator[None]:
    """Give a node a further address, at which all is counted that comes to its data port."""
    chain = ["inet", "mesh", "input"]
    lab.on(node, ["ip", "addr", "add", f"{MESH}/32", "dev", "eth0"])
    lab.run(["ip", "route", "add", f"{MESH}/32", "dev", "eth0"])
    rules = [f"add rule {' '.join(chain)} ip daddr {MESH} tcp dport {PORT} {match} counter name {name}"
             for name, match in COUNTERS.items()]  # fmt: skip
    declared = [f"add counter inet mesh {name}" for name in COUNTERS]
    hook = "{ type filter hook input priority -10; policy accept; }"
    lab.on(node, ["nft", "-f", "-"], stdin="\n".join(
        ["add table inet mesh", f"add chain {' '.join(chain)} {hook}", *declared, *rules, ""]
    ))  # fmt: skip
    let_in = f"insert rule inet lab input ip daddr {MESH} tcp dport {PORT} accept"  # also where a jump host is the way
    lab.on(node, ["nft", *let_in.split()])
    try:
        yield
    finally:
        lab.run(["ip", "route", "del", f"{MESH}/32"], check=False)
        lab.run(["ip", "neigh", "flush", "to", MESH], check=False)
        lab.on(node, ["ip", "addr", "del", f"{MESH}/32", "dev", "eth0"])
        lab.on(node, ["nft", "delete", "table", "inet", "mesh"])
        remove_rule(lab, node, f"ip daddr {MESH}")


def counted(lab: Lab, node: str, name: str) -> int:
    """How many bytes, or packets, one of the counters has seen."""
    shown = lab.on(node, ["nft", "-j", "list", "counter", "inet", "mesh", name]).stdout
    (counter,) = [entry["counter"] for entry in json.loads(shown)["nftables"] if "counter" in entry]
    return int(counter["bytes" if name == "everything" else "packets"])


@contextmanager
def filtered(lab: Lab, node: str = "twin") -> Iterator[None]:
    """Filter the data port at the node's first address, the one that SSH uses."""
    rule = f"ip daddr {lab.address(node)} tcp dport {PORT} counter drop"
    lab.on(node, ["nft", "insert", "rule", "inet", "lab", "input", *rule.split()])
    try:
        yield
        said = lab.on(node, ["nft", "-a", "list", "chain", "inet", "lab", "input"]).stdout
        (line,) = [line for line in said.splitlines() if f"dport {PORT} counter" in line]
        assert int(line.split("packets ")[1].split()[0]) > 0, "nobody knocked at the first address"
    finally:
        remove_rule(lab, node, f"dport {PORT} counter")


def remove_rule(lab: Lab, node: str, words: str) -> None:
    said = lab.on(node, ["nft", "-a", "list", "chain", "inet", "lab", "input"]).stdout
    (line,) = [line for line in said.splitlines() if words in line]
    lab.on(node, ["nft", "delete", "rule", "inet", "lab", "input", "handle", line.split()[-1]])


@contextmanager
def listening(lab: Lab, node: str, tmp_path: Path) -> Iterator[Path]:
    """Have another machine listen on the data port; gives the log of what it is told."""
    made, log = make_certificate(), lab.path(node, "/root/told.log")
    put(lab, node, "/root/certificate.pem", made.certificate + made.key)
    script = put(lab, node, "/root/listener.py", LISTENER)
    words = ["/root/listener.py", str(PORT), "/root/certificate.pem", "/root/told.log"]
    assert script.exists()
    with lab.popen_on(node, [sys.executable, "-I", *words], stderr=(tmp_path / "listener.err").open("wb")) as process:
        try:
            wait_until(lambda: log.exists() and b"up" in log.read_bytes(), 10, "the listener")
            yield log
        finally:
            process.kill()


def attempts(done: Done) -> list[tuple[str, bool]]:
    return [(attempt["transport"], attempt["error"] is None) for attempt in done.last["attempts"]]


def test_the_port_is_open_at_the_second_address_only(here: Lab, tmp_path: Path) -> None:
    """Found by the probe, chosen by `auto`, and the file goes there, encrypted; SSH goes to the first."""
    nodes = inventory(tmp_path, "twin", MESH)
    with mesh(here, "twin"), filtered(here):
        shown = rrmove(here, "probe", *nodes, "twin").out
        (line,) = [line for line in shown.splitlines() if line.split()[:1] == ["ports"]]
        assert line.split(maxsplit=1)[1] == f"6881 filtered, {PORT} refused at {MESH}"  # let in; nothing listens yet
        small = make(tmp_path / "small.bin", 1000)
        arrive(here, small, "twin", "/data/small.bin", "--only", "chunked")  # from now on one address is known of
        done = arrive(here, sparse(tmp_path / "big.bin"), "twin", "/data/big.bin", *nodes)
        assert attempts(done) == [("http", True)], done.out
        assert counted(here, "twin", "everything") > done.last["bytes_sent"] > 12 * MB
        assert counted(here, "twin", "greetings") > 0
        assert counted(here, "twin", "puts") == 0
    nothing_runs(here, "twin")


def test_behind_a_jump_host_a_further_address_is_a_direct_way(here: Lab, source: File, tmp_path: Path) -> None:
    nodes = inventory(tmp_path, "inner", MESH)
    with mesh(here, "inner"):
        done = arrive(here, source, "inner", "/data/model.bin", "--only", "http", *nodes)
        assert attempts(done) == [("http", True)]
        assert counted(here, "inner", "everything") > source.size
        # Tailscale's network, but nobody has seen the node's host key there
        assert counted(here, "inner", "greetings") > 0
        assert counted(here, "inner", "puts") == 0
    nothing_runs(here, "inner")


def test_where_ssh_goes_itself_plain_http_is_as_good_as_ever(here: Lab, source: File, tmp_path: Path) -> None:
    """The counters can tell, and what is certain about SSH's own address has not changed."""
    nodes = tmp_path / "rrmove.toml"
    nodes.write_text(f'[nodes.twin]\naddresses = [{{ host = "{MESH}", kind = "lan" }}]\n')
    with mesh(here, "twin"):
        done = arrive(here, source, "twin", "/data/model.bin", "--only", "http", "--nodes", str(nodes))
        assert attempts(done) == [("http", True)]
        assert counted(here, "twin", "everything") > source.size
        assert counted(here, "twin", "puts") > 0
        assert counted(here, "twin", "greetings") == 0


@pytest.mark.campaign
def test_where_the_port_is_shut_midway_the_next_address_goes_on(here: Lab, tmp_path: Path) -> None:
    nodes, large = inventory(tmp_path, "twin", MESH), make(tmp_path / "large.bin", 40 * MB)
    words = ("--only", "http", "--limit-rate", "10M", *nodes)
    with mesh(here, "twin"), Running(here, large, "twin:/data/large.bin", *words) as move:
        move.until(0.3)
        assert counted(here, "twin", "everything") < 10_000  # a greeting
        with filtered(here):
            done = move.done()
        assert done.code == 0, done.err
        assert attempts(done)[-1] == ("http", True)
        assert counted(here, "twin", "everything") > 0.3 * large.size
    assert here.sha256("twin", "/data/large.bin") == large.digest
    assert done.last["bytes_sent"] < 1.5 * large.size
    nothing_runs(here, "twin")


REST = [
    pytest.param(case, marks=pytest.mark.campaign) for case in (*STRANGERS[2:], STRANGERS[0], "its host key was seen")
]


@pytest.mark.parametrize("case", [STRANGERS[1], *REST])
def test_another_machine_that_listens_is_given_nothing(here: Lab, tmp_path: Path, case: str) -> None:
    """Whatever runs on the node, the file gets there, and the stranger has heard a greeting at the most."""
    foreign, nodes = here.address("foreign"), tmp_path / "rrmove.toml"
    kind = "lan" if case == "its host key was seen" else "tailscale"  # the nearer one is where SSH goes first
    nodes.write_text(f'[nodes.twin]\naddresses = [{{ host = "{foreign}", kind = "{kind}" }}]\n')
    if case == "a data server":
        put(here, "twin", "/root/token", "secret-of-the-data-server\n")
        state = {"scheme": "https", "token_file": "/root/token", "fingerprint": "ab" * 32,
                 "roots": [{"name": "data", "path": "/data", "access": "rw"}]}  # fmt: skip
        put(here, "twin", f"/root/.local/state/rrmove/serve-{PORT}.json", json.dumps(state))
    large = make(tmp_path / "large.bin", 64 * MB)  # so that http comes first
    with listening(here, "foreign", tmp_path) as log, ExitStack() as faults:
        in_vain = case in {"nothing runs", "a data server"}
        if in_vain:
            faults.enter_context(filtered(here))
        done = arrive(here, large, "twin", "/data/large.bin", "--only", "http,scp", "--nodes", str(nodes))
        told = log.read_bytes()
    assert attempts(done) == ([("http", False), ("scp", True)] if in_vain else [("http", True)])
    if in_vain:
        assert foreign in done.last["attempts"][0]["error"]
    assert b"said" not in told
    assert b"came" in told or case == "its host key was seen", "nobody knocked at the other machine"
    assert (b"greeted" in told) == (case == "a data server")  # its certificate is asked for, and is the wrong one
    nothing_runs(here)
