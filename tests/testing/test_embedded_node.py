"""The embedded node seen from outside: real clients, real commands, and each fault as a client meets it."""

from __future__ import annotations

import hashlib
import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import paramiko
import pytest

from rrmove.testing import EmbeddedNode, Faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1024 * 1024
needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here")


@pytest.fixture(scope="module")
def shared() -> Iterator[EmbeddedNode]:
    """One faultless node for the tests that only look at it."""
    with EmbeddedNode() as node:
        yield node


def ssh(node: EmbeddedNode, command: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    argv = ["ssh", "-F", str(node.ssh_config), node.name, command]
    return subprocess.run(argv, input=data or b"", capture_output=True, timeout=30, check=False)


def login(node: EmbeddedNode) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.load_host_keys(str(node.known_hosts))
    client.connect(
        node.host, node.port, node.user, key_filename=str(node.identity), look_for_keys=False, allow_agent=False,
        timeout=20,
    )  # fmt: skip
    return client


def raw_connection(node: EmbeddedNode) -> socket.socket:
    return socket.create_connection((node.host, node.port), timeout=10)


def read_to_end(raw: socket.socket) -> None:
    while raw.recv(4096):
        pass


def until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Wait for what comes soon on an idle machine and later on a busy one."""
    patience = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > patience:
            return False
        time.sleep(0.02)
    return True


def offspring() -> set[str]:
    """Give our children, those that have ended and were not waited for as well."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(children.read_text().split()) if children.exists() else set()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def marked(tag: str) -> list[int]:
    """Find the processes whose command line contains `tag`."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if tag.encode() in cmdline.read_bytes():
                found.append(int(cmdline.parent.name))
        except OSError:
            continue
    return found


class TestCommands:
    @needs_ssh
    def test_openssh_runs_a_command_in_the_home(self, shared: EmbeddedNode) -> None:
        done = ssh(shared, "pwd; echo $HOME; echo oops >&2; exit 7")
        assert done.stdout.decode().split() == [str(shared.home)] * 2
        assert b"oops\n" in done.stderr
        assert done.returncode == 7

    def test_paramiko_runs_several_commands_on_one_connection(self, shared: EmbeddedNode) -> None:
        with login(shared) as client:
            running = [client.exec_command(f"cat; echo {number}; exit {number}") for number in range(5)]
            for number, (stdin, stdout, _) in enumerate(running):
                stdin.write(b"in ")
                stdin.channel.shutdown_write()
                assert stdout.read() == b"in %d\n" % number
                assert stdout.channel.recv_exit_status() == number

    def test_short_commands_are_accepted_before_they_end(self, shared: EmbeddedNode) -> None:
        with login(shared) as client:
            for _ in range(30):
                assert client.exec_command("exit 4")[1].channel.recv_exit_status() == 4

    @needs_ssh
    def test_a_shell_without_a_command_reads_its_input(self, shared: EmbeddedNode) -> None:
        argv = ["ssh", "-T", "-F", str(shared.ssh_config), shared.name]
        done = subprocess.run(argv, input=b"echo from stdin\n", capture_output=True, timeout=30, check=False)
        assert done.stdout == b"from stdin\n"

    @needs_ssh
    def test_a_command_ended_by_a_signal(self, shared: EmbeddedNode) -> None:
        assert ssh(shared, "kill -9 $$").returncode == 137

    @needs_ssh
    def test_a_big_upload_arrives_whole_and_returns_whole(self, shared: EmbeddedNode) -> None:
        data = os.urandom(20 * MIB)
        before = shared.bytes_in
        assert ssh(shared, "cat > big", data).returncode == 0
        assert hashlib.sha256((shared.home / "big").read_bytes()).digest() == hashlib.sha256(data).digest()
        assert 20 * MIB < shared.bytes_in - before < 21 * MIB
        assert ssh(shared, "cat big").stdout == data

    def test_a_big_upload_with_paramiko(self, shared: EmbeddedNode) -> None:
        data = os.urandom(20 * MIB)
        with login(shared) as client:
            stdin, stdout, _ = client.exec_command("sha256sum")
            stdin.channel.sendall(data)
            stdin.channel.shutdown_write()
            assert stdout.read().split()[0].decode() == hashlib.sha256(data).hexdigest()

    def test_eight_connections_at_once(self) -> None:
        def upload(number: int) -> bytes:
            data = os.urandom(2 * MIB)
            with login(node) as client:
                stdin, stdout, _ = client.exec_command(f"cat > file{number}; echo done")
                stdin.channel.sendall(data)
                stdin.channel.shutdown_write()
                assert stdout.read() == b"done\n"
            return data

        with EmbeddedNode() as node, ThreadPoolExecutor(8) as pool:
            for number, data in enumerate(pool.map(upload, range(8))):
                assert (node.home / f"file{number}").read_bytes() == data
            assert (node.connections, node.logins, node.resets) == (8, 8, 0)

    @pytest.mark.skipif(shutil.which("scp") is None, reason="no scp here")
    @pytest.mark.skipif(not Path("/usr/lib/openssh/sftp-server").exists(), reason="no sftp-server here")
    def test_scp_copies_both_ways(self, shared: EmbeddedNode, tmp_path: Path) -> None:
        (tmp_path / "there").write_bytes(os.urandom(3 * MIB))
        for source, target in (
            (tmp_path / "there", f"{shared.name}:copied"),
            (f"{shared.name}:copied", tmp_path / "back"),
        ):
            argv = ["scp", "-q", "-F", str(shared.ssh_config), str(source), str(target)]
            subprocess.run(argv, check=True, timeout=30)
        assert (shared.home / "copied").read_bytes() == (tmp_path / "there").read_bytes()
        assert (tmp_path / "back").read_bytes() == (tmp_path / "there").read_bytes()

    @needs_ssh
    def test_another_host_key_is_noticed(self, shared: EmbeddedNode) -> None:
        with EmbeddedNode(name="other") as other:
            address, key = other.known_hosts.read_text().split()[0], shared.known_hosts.read_text().split()[1:]
            other.known_hosts.write_text(" ".join([address, *key]) + "\n")
            done = ssh(other, "true")
        assert done.returncode == 255
        assert b"Host key verification failed" in done.stderr


class TestBrokenConnections:
    @needs_ssh
    def test_reset_after_bytes(self) -> None:
        limit = 3_000_000
        with EmbeddedNode(Faults(reset_after_bytes=limit)) as node:
            done = ssh(node, "cat > part", os.urandom(20 * MIB))
            assert done.returncode == 255
            assert b"reset" in done.stderr.lower() or b"broken pipe" in done.stderr.lower()
            assert (node.bytes_in, node.resets) == (limit, 1)
            # What the node received before the reset it still writes, but for the handshake and the headers.
            part = node.home / "part"
            assert until(lambda: part.exists() and part.stat().st_size > limit * 0.95)
            assert (node.home / "part").stat().st_size <= limit

    def test_the_reset_is_a_real_one(self) -> None:
        with EmbeddedNode(Faults(reset_after_bytes=10)) as node, raw_connection(node) as raw:
            raw.sendall(b"SSH-2.0-nobody\r\n")
            with pytest.raises(ConnectionResetError):
                read_to_end(raw)

    def test_reset_after_seconds(self) -> None:
        with EmbeddedNode(Faults(reset_after_seconds=(0.3, 0.6))) as node:
            started = time.monotonic()
            with raw_connection(node) as raw, pytest.raises(ConnectionResetError):
                read_to_end(raw)
            assert time.monotonic() - started > 0.25
            assert node.resets == 1

    @needs_ssh
    def test_a_reset_ends_the_command_after_its_grace(self) -> None:
        with EmbeddedNode(Faults(reset_after_seconds=2.0)) as node:
            done = ssh(node, "touch begun; exec sleep 4321.25")
            assert done.returncode == 255
            assert (node.home / "begun").exists()
            assert until(lambda: not marked("4321.25"))

    @needs_ssh
    def test_a_command_that_reads_sees_the_end_of_its_input(self) -> None:
        with EmbeddedNode(Faults(reset_after_seconds=2.0)) as node:
            argv = ["ssh", "-F", str(node.ssh_config), node.name, "cat > /dev/null; touch ended"]
            with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL):
                assert until((node.home / "ended").exists)

    @needs_ssh
    def test_silence(self) -> None:
        with EmbeddedNode(Faults(silent_after_seconds=2.0)) as node:
            argv = ["ssh", "-F", str(node.ssh_config), node.name, "while echo tick; do sleep 0.05; done"]
            with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
                assert client.stdout is not None
                heard = b""
                while select.select([client.stdout], [], [], 3.0)[0]:
                    heard += os.read(client.stdout.fileno(), 4096)
                assert heard.startswith(b"tick\n")
                assert client.poll() is None
                assert node.resets == 0
                client.kill()

    @needs_ssh
    def test_refused_logins(self) -> None:
        with EmbeddedNode(Faults(refuse_logins=2)) as node:
            assert [ssh(node, "true").returncode for _ in range(3)] == [255, 255, 0]
            assert (node.connections, node.logins) == (3, 1)
            node.faults = replace(node.faults, hidden_tools=frozenset({"rsync"}))
            assert ssh(node, "true").returncode == 0

    @needs_ssh
    def test_rejected_auth(self) -> None:
        with EmbeddedNode(Faults(reject_auth=True)) as node:
            done = ssh(node, "true")
            assert done.returncode == 255
            assert b"Permission denied (publickey)" in done.stderr
            with pytest.raises(paramiko.AuthenticationException):
                login(node)
            assert node.logins == 0

    @needs_ssh
    def test_a_wrong_user_is_refused(self, shared: EmbeddedNode) -> None:
        argv = ["ssh", "-F", str(shared.ssh_config), "-l", "somebody", shared.name, "true"]
        assert subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode == 255

    def test_latency_is_added_to_each_round_trip(self) -> None:
        def round_trips(rtt: float) -> float:
            with EmbeddedNode(Faults(rtt=rtt)) as node, login(node) as client:
                stdin, stdout, _ = client.exec_command("cat")
                started = time.monotonic()
                for _ in range(4):
                    stdin.channel.sendall(b"x")
                    assert stdout.channel.recv(1) == b"x"
                return time.monotonic() - started

        assert round_trips(0.15) > 4 * 0.15

    def test_latency_does_not_bound_the_rate(self) -> None:
        data = os.urandom(3 * MIB)  # less than the window: a few round trips, and not one for each packet
        with EmbeddedNode(Faults(rtt=0.1)) as node, login(node) as client:
            stdin, stdout, _ = client.exec_command("cat > file; wc -c < file")
            started = time.monotonic()
            stdin.channel.sendall(data)
            stdin.channel.shutdown_write()
            assert int(stdout.read()) == len(data)
            assert time.monotonic() - started < 0.1 * 96 / 2

    @needs_ssh
    def test_the_rate_is_shared(self) -> None:
        with EmbeddedNode(Faults(rate=2 * MIB)) as node, ThreadPoolExecutor(2) as pool:
            started = time.monotonic()
            done = list(pool.map(lambda _: ssh(node, "cat > /dev/null", bytes(2 * MIB)), range(2)))
            assert [each.returncode for each in done] == [0, 0]
            assert time.monotonic() - started > 1.9


class TestTheNodeItself:
    @needs_ssh
    def test_hidden_tools(self) -> None:
        with EmbeddedNode(Faults(hidden_tools=frozenset({"python3"}))) as node:
            assert ssh(node, "command -v python3 || command -v python3.11 || command -v python").stdout == b""
            assert ssh(node, "command -v cat").returncode == 0
            node.faults = replace(node.faults, hidden_tools=frozenset({"cat", "sftp-server"}))
            assert ssh(node, "command -v cat").returncode == 127
            if Path("/usr/bin/python3").exists():
                assert ssh(node, "command -v python3").returncode == 0
            with login(node) as client, pytest.raises(paramiko.SSHException):
                client.open_sftp()

    @needs_ssh
    def test_hidden_rsync(self, shared: EmbeddedNode) -> None:
        if ssh(shared, "command -v rsync").returncode:
            pytest.skip("no rsync here")
        with EmbeddedNode(Faults(hidden_tools=frozenset({"rsync"}))) as node:
            assert ssh(node, "rsync --version").returncode == 127

    def test_tools_are_linked_quickly(self) -> None:
        with EmbeddedNode() as node:
            started = time.monotonic()
            bin_directory = node._tools(frozenset({"rsync"}))
            assert time.monotonic() - started < 1  # 20 ms where this was written
            assert (bin_directory / "cat").exists()
            assert node._tools(frozenset({"rsync"})) == bin_directory
        assert not bin_directory.exists()

    @needs_ssh
    @pytest.mark.parametrize("at_start", [True, False], ids=["at-start", "while-running"])
    def test_a_full_disk(self, *, at_start: bool) -> None:
        full = Faults(disk_bytes=MIB)
        with EmbeddedNode(full if at_start else Faults()) as node:
            node.faults = full
            done = ssh(node, "cat > file", bytes(2 * MIB))
            assert done.returncode not in (0, 255)
            assert b"No space left" in done.stderr or b"File too large" in done.stderr
            assert 0 < (node.home / "file").stat().st_size <= MIB
            assert ssh(node, "rm file; cat > file", bytes(MIB // 2)).returncode == 0
            node.faults = Faults()
            assert ssh(node, "cat > file", bytes(2 * MIB)).returncode == 0
            home = node.home
        assert str(home) not in Path("/proc/self/mounts").read_text()
        assert not home.exists()

    @needs_ssh
    def test_close_leaves_nothing(self) -> None:
        threads = set(threading.enumerate())
        opened, before = descriptors(), offspring()
        node = EmbeddedNode(Faults(silent_after_seconds=30.0))
        node.start()
        node.start()
        home = node.home
        half_open = raw_connection(node)
        clients = [login(node), login(node)]
        clients[0].exec_command("trap '' HUP TERM; while :; do sleep 987.125; done")
        clients[1].exec_command("setsid sleep 987.125 > /dev/null 2>&1 < /dev/null & cat")
        assert until(lambda: len(marked("sleep\0" + "987.125")) == 2)
        node.close()
        node.close()
        assert not marked("987.125")
        assert not home.parent.exists()
        with pytest.raises(ConnectionRefusedError):
            raw_connection(node)
        for client in clients:
            client.close()
        half_open.close()
        assert until(lambda: set(threading.enumerate()) <= threads)
        assert until(lambda: descriptors() <= opened)
        assert offspring() <= before

    @needs_ssh
    def test_a_background_command_outlives_its_connection_until_the_node_closes(self) -> None:
        with EmbeddedNode() as node:
            assert ssh(node, "sleep 987.375 > /dev/null 2>&1 < /dev/null &").returncode == 0
            assert marked("987.375")
        assert not marked("987.375")

    @needs_ssh
    def test_a_closed_node_starts_again_with_its_directory(self, tmp_path: Path) -> None:
        node = EmbeddedNode(directory=tmp_path)
        for name in ("first", "second"):
            with node:
                assert ssh(node, f"touch {name}").returncode == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
        assert sorted(path.name for path in node.home.iterdir()) == ["first", "second"]

    def test_the_identity_is_private(self, shared: EmbeddedNode) -> None:
        assert shared.identity.stat().st_mode & 0o777 == 0o600

    def test_importing_is_cheap_and_a_cut_prints_nothing(self) -> None:
        script = (
            "import sys; from rrmove.testing import EmbeddedNode, Faults; assert 'paramiko' not in sys.modules\n"
            "import socket, time\n"
            "with EmbeddedNode(Faults(reset_after_bytes=10)) as node:\n"
            "    with socket.create_connection((node.host, node.port)) as raw:\n"
            "        raw.sendall(b'SSH-2.0-nobody' + bytes([13, 10])); time.sleep(0.2)\n"
        )
        path = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, timeout=30, check=False,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), shlex.join(done.args)

    @pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": -1.0}, {"rtt": -0.1}])
    def test_impossible_faults(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="must"):
            Faults(**wrong)  # type: ignore[arg-type]
