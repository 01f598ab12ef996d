"""The embedded session against the embedded node: lanes over paramiko, and each way that a login can fail."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import hmac
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rrmove.errors import Fatal, RRMoveError, Transient
from rrmove.model import Node, SSHSettings
from rrmove.session import FilePart
from rrmove.ssh import embedded
from rrmove.ssh.embedded import ParamikoChannel, ParamikoLogin
from rrmove.ssh.failures import NoLogin, NoPython
from rrmove.ssh.floor import FloorLane
from rrmove.ssh.hostkeys import Verdict, names_of, verdict
from rrmove.ssh.lane import AgentLane
from rrmove.ssh.settings import hop_node, read_settings
from rrmove.testing import EmbeddedNode, Faults

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 5
    while time.monotonic() < end and leftover(before):
        time.sleep(0.02)
    assert not leftover(before)


def leftover(before: set[threading.Thread]) -> list[threading.Thread]:
    # asyncio's executor keeps its threads until the loop ends.
    return [one for one in threading.enumerate() if one not in before and not one.name.startswith("asyncio")]


@pytest.fixture
def server() -> Iterator[EmbeddedNode]:
    with EmbeddedNode() as node:
        yield node


@pytest.fixture(params=["ssh -G", "paramiko"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the settings read by either reader of ssh_config."""
    if request.param == "paramiko":
        monkeypatch.setattr(embedded, "effective_sync", lambda _node: None)
    return str(request.param)


class InProcess(ParamikoChannel):
    """A channel that lanes can use without a process between them; see `rrmove.ssh.channel.Channel`."""

    ahead = b""

    def read(self, size: int) -> bytes:
        while len(self.ahead) < size and (data := self.receive()):
            self.ahead += data
        piece, self.ahead = self.ahead[:size], self.ahead[size:]
        return piece

    def write_file(self, fd: int, offset: int, length: int) -> None:
        self.write(os.pread(fd, length, offset))

    def kill(self) -> None:
        self._login.cut()

    def close(self) -> None:
        self._login.end()


def open_channel(node: Node, command: str) -> InProcess:
    opened = embedded.open_channel(ParamikoLogin(node), command)
    return InProcess(opened._login, opened._channel)


def node_of(server: EmbeddedNode, **settings: Any) -> Node:
    return Node(name=server.name, ssh=SSHSettings(config=server.ssh_config, **settings))


def lane_to(node: Node, kind: type[AgentLane | FloorLane] = AgentLane) -> AgentLane | FloorLane:
    return kind(lambda command: open_channel(node, command), node)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


async def move(lane: AgentLane | FloorLane, server: EmbeddedNode, source: Path, frame: int = 1 << 20) -> None:
    size = source.stat().st_size
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    found: dict[str, Any] = dict((await lane.call("locate", destination="", name="file.bin", key="k")).fields)
    opened = await lane.call("open", part=found["part"], journal=found["journal"], note={}, size=size, need=size)
    with source.open("rb") as file:
        await asyncio.gather(
            *(
                lane.call("put", FilePart(file.fileno(), at, min(frame, size - at)), part=found["part"], at=at)
                for at in range(0, size, frame)
            )
        )
    seen = await lane.call("hash", path=found["part"], spans=[[0, size]])
    assert seen.fields["digests"] == [digest]
    await lane.call(
        "commit", part=found["part"], journal=found["journal"], target=found["target"], size=size,
        ino=opened.fields["ino"], mode=0o600, mtime_ns=0, check=[[0, size, digest]],
    )  # fmt: skip
    assert hashlib.sha256((server.home / "file.bin").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("kind", [AgentLane, FloorLane])
@pytest.mark.usefixtures("reader")
async def test_fifty_megabytes_arrive_whole(
    server: EmbeddedNode, kind: type[AgentLane | FloorLane], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20) * 50 + b"tail")
    lane = lane_to(node_of(server), kind)
    everything = bytes(range(256))
    reply = await lane.call("hello", everything)
    assert reply.body == everything
    assert reply.fields["clean"] is True
    await move(lane, server, source)
    assert lane.carried > 50 << 20
    await lane.close()


async def test_bytes_come_back_whole(server: EmbeddedNode) -> None:
    data = os.urandom(3_000_001)
    (server.home / "back.bin").write_bytes(data)
    lane = lane_to(node_of(server))
    reply = await lane.call("get", path=str(server.home / "back.bin"), at=0, length=len(data))
    assert reply.body == data
    await lane.close()


def failure(node: Node) -> RRMoveError:
    with pytest.raises(RRMoveError) as caught:
        open_channel(node, "true")
    assert caught.value.node == node.name
    return caught.value


@pytest.mark.usefixtures("reader")
def test_an_unknown_host_key_is_fatal(server: EmbeddedNode) -> None:
    server.known_hosts.write_text("")
    error = failure(node_of(server))
    assert isinstance(error, Fatal)
    assert error.what == "the host key is unknown"
    assert server.known_hosts.read_text() == ""


@pytest.mark.usefixtures("reader")
def test_a_changed_host_key_is_fatal(server: EmbeddedNode) -> None:
    words = server.known_hosts.read_text().split()
    blob = bytearray(base64.b64decode(words[2]))
    blob[-1] ^= 1
    server.known_hosts.write_text(f"{words[0]} {words[1]} {base64.b64encode(blob).decode()}\n")
    error = failure(node_of(server))
    assert isinstance(error, Fatal)
    assert "not the one that is known" in error.what
    edit(server.ssh_config, "StrictHostKeyChecking yes", "StrictHostKeyChecking no")
    assert isinstance(failure(node_of(server)), Fatal)


def test_a_revoked_host_key_is_fatal(server: EmbeddedNode) -> None:
    line = server.known_hosts.read_text()
    server.known_hosts.write_text(f"{line}@revoked * {line.split(' ', 1)[1]}")
    error = failure(node_of(server))
    assert isinstance(error, Fatal)
    assert "revoked" in error.what


@pytest.mark.usefixtures("reader")
def test_a_new_host_key_is_remembered_where_ssh_config_says_so(server: EmbeddedNode) -> None:
    line = server.known_hosts.read_text()
    server.known_hosts.write_text("")
    edit(server.ssh_config, "StrictHostKeyChecking yes", "StrictHostKeyChecking accept-new")
    for _ in range(2):
        channel = open_channel(node_of(server), "echo in")
        assert channel.read(3) == b"in\n"
        channel.close()
        assert server.known_hosts.read_text().split()[:3] == line.split()[:3]
        assert len(server.known_hosts.read_text().splitlines()) == 1


def test_a_hashed_name_is_known(server: EmbeddedNode) -> None:
    name, rest = server.known_hosts.read_text().split(" ", 1)
    salt = os.urandom(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    hashed = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
    server.known_hosts.write_text(f"{hashed} {rest}")
    open_channel(node_of(server), "true").close()


@pytest.fixture
def other_key(tmp_path: Path) -> Path:
    with EmbeddedNode(directory=tmp_path / "other") as other:
        key = tmp_path / "other_key"
        key.write_bytes(other.identity.read_bytes())
        key.chmod(0o600)
    return key


@pytest.mark.usefixtures("reader")
def test_a_wrong_key_is_fatal(server: EmbeddedNode, other_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    right = server.identity.read_bytes()
    server.identity.write_bytes(other_key.read_bytes())
    error = failure(node_of(server))
    assert isinstance(error, Fatal)
    assert error.what == "authentication was refused"
    server.identity.write_text("no key at all")
    assert isinstance(failure(node_of(server)), Fatal)
    other_key.write_bytes(right)
    channel = open_channel(node_of(server, identity=other_key), "echo in")
    assert channel.read(3) == b"in\n"
    channel.close()


def test_a_refused_login_is_fatal(server: EmbeddedNode) -> None:
    server.faults = Faults(reject_auth=True)
    error = failure(node_of(server))
    assert isinstance(error, Fatal)
    assert error.what == "authentication was refused"


def test_a_server_that_closes_before_the_login_is_no_login(server: EmbeddedNode) -> None:
    server.faults = Faults(refuse_logins=1)
    assert isinstance(failure(node_of(server)), NoLogin)
    open_channel(node_of(server), "true").close()


def test_nobody_listening_is_no_login(server: EmbeddedNode) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error = failure(node_of(server, port=port))
    assert isinstance(error, NoLogin)
    assert "nothing listens" in error.what


def test_a_name_that_is_not_there_is_fatal(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("")
    error = failure(Node(name="no-such-host.invalid", ssh=SSHSettings(config=config)))
    assert isinstance(error, Fatal | NoLogin)
    assert "name" in error.what


def test_a_silent_server_is_no_login(server: EmbeddedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "CONNECT_TIMEOUT", 1.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        error = failure(node_of(server, port=listener.getsockname()[1]))
    assert isinstance(error, NoLogin)


async def test_a_reset_is_transient(server: EmbeddedNode, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(8 << 20))
    server.faults = Faults(reset_after_bytes=2 << 20)
    lost: list[RRMoveError] = []
    node = node_of(server)
    lane = AgentLane(lambda command: open_channel(node, command), node, lost=lost.append)
    with pytest.raises(Transient) as caught:
        await move(lane, server, source)
    assert type(caught.value) is Transient
    assert [type(error) for error in lost] == [Transient]
    assert not lane.alive
    await lane.close()
    server.faults = Faults()
    again = lane_to(node)
    await move(again, server, source)
    await again.close()


async def test_a_node_without_python_is_told(server: EmbeddedNode) -> None:
    server.faults = Faults(hidden_tools=frozenset({"python3"}))
    lane = lane_to(node_of(server))
    with pytest.raises(NoPython):
        await lane.ready()
    await lane.close()
    floor = lane_to(node_of(server), FloorLane)
    assert (await floor.call("hello", b"x")).body == b"x"
    await floor.close()


def test_the_commands_words_are_in_the_cause(server: EmbeddedNode) -> None:
    channel = open_channel(node_of(server), "echo oh no >&2; exit 3")
    assert channel.read(1) == b""
    error = channel.cause()
    assert isinstance(error, Transient)
    assert "status 3" in error.what
    assert "oh no" in str(error.tried)
    channel.close()


@pytest.mark.parametrize("what", ["read", "write"])
def test_a_kill_unblocks_at_once(server: EmbeddedNode, what: str) -> None:
    channel = open_channel(node_of(server), "sleep 60")
    ends: list[object] = []

    def block() -> None:
        try:
            if what == "read":
                ends.append(channel.read(1))
            else:
                channel.write(bytes(64 << 20))
        except OSError as error:
            ends.append(error)

    thread = threading.Thread(target=block)
    thread.start()
    time.sleep(0.5)
    assert not ends
    began = time.monotonic()
    channel.kill()
    assert time.monotonic() - began < 0.05
    thread.join(2)
    assert not thread.is_alive()
    assert time.monotonic() - began < 0.5
    channel.kill()
    channel.close()
    channel.close()


FORWARD = """
import socket, sys, threading
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while data := sock.recv(65536):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
threading.Thread(target=back, daemon=True).start()
import os
while data := os.read(0, 65536):
    sock.sendall(data)
"""


@pytest.mark.usefixtures("reader")
def test_a_proxy_command_is_the_way(server: EmbeddedNode, tmp_path: Path) -> None:
    script = tmp_path / "forward.py"
    script.write_text(FORWARD)
    with server.ssh_config.open("a") as config:
        config.write(f"  ProxyCommand {shlex.quote(sys.executable)} {script} %h %p\n")
    channel = open_channel(node_of(server), "echo through; cat")
    assert channel.read(8) == b"through\n"
    channel.write(b"back")
    assert channel.read(4) == b"back"
    channel.close()


def test_a_proxy_command_that_fails_says_so(server: EmbeddedNode) -> None:
    with server.ssh_config.open("a") as config:
        config.write("  ProxyCommand sh -c 'echo connect: Connection refused >&2; exit 1'\n")
    error = failure(node_of(server))
    assert isinstance(error, NoLogin)
    assert "nothing listens" in error.what


@pytest.fixture
def sshd(server: EmbeddedNode, tmp_path: Path) -> Iterator[int]:
    """Run OpenSSH's server, which forwards: hops need one, and it is what nodes run."""
    program = shutil.which("sshd", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None or shutil.which("ssh-keygen") is None or os.geteuid() != 0:
        pytest.skip("needs sshd, and root to run it")
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "client"):
        argv = ["ssh-keygen", "-q", "-t", "rsa" if name == "host" else "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(argv, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    config = tmp_path / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/client.pub\n"
        "StrictModes no\nUsePAM no\nPermitRootLogin yes\nAllowTcpForwarding yes\nPidFile none\n"
    )
    process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with socket.socket() as knock:
            if not knock.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.02)
    kind, blob = (tmp_path / "host.pub").read_text().split()[:2]
    with server.known_hosts.open("a") as known:
        known.write(f"[127.0.0.1]:{port} {kind} {blob}\n")
    hops = "".join(
        f"Host hop{number}\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {tmp_path}/client\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {server.known_hosts}\n  StrictHostKeyChecking yes\n"
        for number in (1, 2, 3)
    )
    server.ssh_config.write_text(server.ssh_config.read_text() + "\n" + hops)
    yield port
    process.terminate()
    process.wait()


def jump(server: EmbeddedNode, word: str) -> None:
    edit(server.ssh_config, f"Host {server.name}\n", f"Host {server.name}\n  ProxyJump {word}\n")


@pytest.mark.parametrize("word", ["hop1", "hop1,root@hop2,hop3"])
@pytest.mark.usefixtures("reader")
@pytest.mark.usefixtures("sshd")
def test_hops_lead_to_the_node(server: EmbeddedNode, word: str) -> None:
    jump(server, word)
    logins = server.logins
    channel = open_channel(node_of(server), "echo through; cat")
    assert channel.read(8) == b"through\n"
    channel.write(bytes(1 << 20))
    assert channel.read(1 << 20) == bytes(1 << 20)
    assert server.logins == logins + 1
    channel.kill()
    assert channel.read(1) == b""
    channel.close()


def test_a_hop_with_an_unknown_host_key_is_fatal(server: EmbeddedNode, sshd: int) -> None:
    jump(server, "hop1")
    lines = [line for line in server.known_hosts.read_text().splitlines() if f":{sshd} " not in line]
    server.known_hosts.write_text("\n".join(lines) + "\n")
    error = failure(node_of(server))
    assert isinstance(error, Fatal)
    assert error.what == "the host key is unknown"


@pytest.mark.usefixtures("sshd")
def test_a_hop_that_cannot_go_on_is_no_login(server: EmbeddedNode) -> None:
    jump(server, "hop1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        known = server.known_hosts.read_text()
        server.known_hosts.write_text(known + known.replace(f":{server.port} ", f":{port} "))
    assert isinstance(failure(node_of(server, port=port)), NoLogin)


@pytest.mark.usefixtures("sshd")
def test_hops_in_a_circle_are_fatal(server: EmbeddedNode) -> None:
    jump(server, "hop1")
    edit(server.ssh_config, "Host hop1\n", "Host hop1\n  ProxyJump hop2\n")
    edit(server.ssh_config, "Host hop2\n", "Host hop2\n  ProxyJump hop1\n")
    assert isinstance(failure(node_of(server)), Fatal)


@pytest.mark.usefixtures("sshd")
async def test_lanes_to_openssh_carry(server: EmbeddedNode, tmp_path: Path) -> None:
    for kind in (AgentLane, FloorLane):
        lane = lane_to(Node(name="hop1", ssh=SSHSettings(config=server.ssh_config)), kind)
        everything = bytes(range(256)) * 400
        assert (await lane.call("hello", everything)).body == everything
        part = str(tmp_path / f".{kind.__name__}.rrmove-part")
        await lane.call("open", part=part, journal=f"{part}.j", note={}, size=3 << 20, need=0)
        data = os.urandom(1 << 20)
        await asyncio.gather(*(lane.call("put", data, part=part, at=at << 20) for at in range(3)))
        assert Path(part).read_bytes() == data * 3
        await lane.close()


def test_the_log_stays_silent(server: EmbeddedNode, capfd: pytest.CaptureFixture[str]) -> None:
    server.known_hosts.write_text("")
    failure(node_of(server))
    server.faults = Faults(reset_after_bytes=200)
    failure(node_of(server))
    assert capfd.readouterr().err == ""


# Without any connection


BLOB, OTHER = base64.b64encode(b"one").decode(), base64.b64encode(b"two").decode()


@pytest.mark.parametrize(
    ("lines", "port", "found"),
    [
        ("", 22, Verdict.UNKNOWN),
        (f"host ssh-ed25519 {BLOB}", 22, Verdict.KNOWN),
        (f"HOST,other ssh-ed25519 {BLOB}", 22, Verdict.KNOWN),
        (f"host ssh-ed25519 {OTHER}", 22, Verdict.CHANGED),
        (f"host ssh-ed25519 {OTHER}\nhost ssh-ed25519 {BLOB}", 22, Verdict.KNOWN),
        (f"host ssh-rsa {OTHER}", 22, Verdict.UNKNOWN),
        (f"[host]:2222 ssh-ed25519 {BLOB}", 2222, Verdict.KNOWN),
        (f"[host]:2222 ssh-ed25519 {BLOB}", 22, Verdict.UNKNOWN),
        (f"host ssh-ed25519 {BLOB}", 2222, Verdict.KNOWN),
        (f"host ssh-ed25519 {OTHER}", 2222, Verdict.UNKNOWN),
        (f"ho*,!host ssh-ed25519 {BLOB}", 22, Verdict.UNKNOWN),
        (f"ho?t ssh-ed25519 {BLOB}", 22, Verdict.KNOWN),
        (f"h[a-z]st ssh-ed25519 {BLOB}", 22, Verdict.UNKNOWN),
        (f"host ssh-ed25519 {BLOB}\n@revoked * ssh-ed25519 {BLOB}", 22, Verdict.REVOKED),
        (f"@cert-authority host ssh-ed25519 {BLOB}", 22, Verdict.UNKNOWN),
        (f"# host ssh-ed25519 {BLOB}", 22, Verdict.UNKNOWN),
        ("host ssh-ed25519 !!!\nhost\n@", 22, Verdict.UNKNOWN),
        ("|1|bad ssh-ed25519 AAAA", 22, Verdict.UNKNOWN),
    ],
)
def test_known_hosts_is_read(lines: str, port: int, found: Verdict, tmp_path: Path) -> None:
    path = tmp_path / "known"
    path.write_text(lines + "\n")
    assert verdict([path, tmp_path / "none"], names_of("Host", port), b"one", "ssh-ed25519") is found


def test_settings_are_those_of_ssh() -> None:
    options = {
        "hostname": ("10.0.0.1",),
        "port": ("2222",),
        "user": ("alice",),
        "identityfile": ("~/.ssh/id_rsa", "/keys/%r@%h"),
        "identitiesonly": ("yes",),
        "proxycommand": ("nc %h %p %% %n",),
        "userknownhostsfile": ("~/a /b",),
        "globalknownhostsfile": ("none",),
        "stricthostkeychecking": ("accept-new",),
    }
    settings = read_settings(Node(name="gpu"), options, "me")
    assert (settings.host, settings.port, settings.user) == ("10.0.0.1", 2222, "alice")
    assert settings.identities == (Path.home() / ".ssh/id_rsa", Path("/keys/alice@10.0.0.1"))
    assert settings.named == {Path("/keys/alice@10.0.0.1")}
    assert settings.identities_only
    assert settings.accepts_new
    assert settings.proxy_command == "nc 10.0.0.1 2222 % gpu"
    assert settings.known_hosts == (Path.home() / "a", Path("/b"))
    mine = SSHSettings(host="h", port=1, user="u", identity=Path("/k"))
    own = read_settings(Node(name="gpu", ssh=mine), {"proxyjump": ("a,b@c:3",), "proxycommand": ("x",)}, "me")
    assert (own.host, own.port, own.user, own.identities[0]) == ("h", 1, "u", Path("/k"))
    assert (own.jumps, own.proxy_command) == (("a", "b@c:3"), None)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a", ("a", None, None)),
        ("u@a:22", ("a", "u", 22)),
        ("ssh://u@a:22", ("a", "u", 22)),
        ("[::1]:22", ("::1", None, 22)),
    ],
)
def test_jump_hosts_are_read(word: str, expected: tuple[str, str | None, int | None]) -> None:
    ssh = hop_node(word, Node(name="n")).ssh
    assert (ssh.host, ssh.user, ssh.port) == expected


def test_node_settings_replace_each_field() -> None:
    assert {field.name for field in dataclasses.fields(SSHSettings)} == {"host", "port", "user", "identity", "config"}
