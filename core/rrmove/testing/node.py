"""The embedded node: an SSH server inside the process that runs real commands in a temporary home."""

# ruff: noqa: SLF001
# Late imports: paramiko costs 125 ms, which only those pay who start a node. Private members: a visit and its
# node are one machine, and neither is for others to call.

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import random
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self, cast

from .faults import Faults, Pace, Relay, draw

if TYPE_CHECKING:
    from collections.abc import Callable

    import paramiko

FAULTLESS = Faults()
SEARCHED = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server",
                "/usr/libexec/sftp-server")  # fmt: skip
WINDOW = 4 * 1024 * 1024  # bytes a channel may have on its way to the node
PACKET = 32 * 1024  # what OpenSSH takes and sends at most
PIECE = PACKET - 64  # paramiko keeps 64 bytes for its headers, and would send a whole packet as two
PIPE = 1024 * 1024  # what Linux lets anyone have as a pipe
READ = 256 * 1024
GRACE = 2.0  # seconds a command has, once its connection died, to notice its closed pipes
MEMORY = "/dev/shm"  # noqa: S108 - used through mkdtemp
QUIET = "rrmove.testing.node.paramiko"
SEVEN_BITS = bytes(range(128)) + b"?" * 128
MARK = "RRMOVE_EMBEDDED_NODE"  # in the environment of each command: how close() finds what escaped its group


class _Command:
    """One command on the node: a process group of its own, its three streams joined to a channel."""

    def __init__(
        self, channel: paramiko.Channel, argv: list[str], env: dict[str, str], home: Path, table: bytes | None
    ) -> None:
        self.finished = False  # reaped, and its output has ended
        self._channel, self._table = channel, table  # what the bytes become on the way; None leaves them
        self._process = subprocess.Popen(
            argv, cwd=home, env=env, start_new_session=True, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, AttributeError):  # no share of pipe memory left; not Linux
                fcntl.fcntl(cast("IO[bytes]", pipe), fcntl.F_SETPIPE_SZ, PIPE)

    def kill(self) -> None:
        """Kill the process group, unless its leader was reaped: the number may be another's by now."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def feed(self) -> None:
        """Pump what the client sends until it ends or the process closes its end."""
        from paramiko.ssh_exception import SSHException

        gone = contextlib.suppress(OSError, EOFError, SSHException)
        with gone, cast("IO[bytes]", self._process.stdin) as pipe:
            while data := self._channel.recv(WINDOW):
                rest = memoryview(data.translate(self._table))
                while rest:
                    rest = rest[os.write(pipe.fileno(), rest) :]

    def finish(self) -> None:
        """Pump the output, reap the process, and report its exit status: 128 + N where signal N ended it."""
        outputs = ((self._process.stdout, self._channel.send), (self._process.stderr, self._channel.send_stderr))
        pumps = [threading.Thread(target=self._drain, args=output, daemon=True) for output in outputs]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        status = self._process.wait()
        with contextlib.suppress(OSError, EOFError):
            self._channel.send_exit_status(status if status >= 0 else 128 - status)
            self._channel.close()
        self.finished = True

    def _drain(self, pipe: IO[bytes], send: Callable[[bytes], int]) -> None:
        """Send what comes out of `pipe`, and close it once nobody listens: the process then gets SIGPIPE."""
        from paramiko.ssh_exception import SSHException

        with contextlib.suppress(OSError, EOFError, SSHException), pipe:
            while data := os.read(pipe.fileno(), READ):
                for start in range(0, len(data), PIECE):
                    piece = data[start : start + PIECE].translate(self._table)
                    while piece:
                        sent = send(piece)
                        if not sent:
                            return
                        piece = piece[sent:]


class _Buffered:
    """A socket that reads ahead: paramiko asks for 16 bytes and then for the rest of each packet."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self._ahead = memoryview(b"")
        self.send, self.close, self.settimeout = inner.send, inner.close, inner.settimeout

    @property
    def _closed(self) -> bool:  # paramiko looks at it
        return self._inner.fileno() < 0

    def recv(self, size: int) -> bytes:
        """Read up to `size` bytes, of what was read already where there is some."""
        if not self._ahead:
            self._ahead = memoryview(self._inner.recv(READ))
        piece = bytes(self._ahead[:size])
        self._ahead = self._ahead[size:]
        return piece


class _Visit:
    """One connection as the node sees it: who may log in, and which commands it started."""

    def __init__(self, node: EmbeddedNode, faults: Faults, peer: tuple[str, int]) -> None:
        self.commands: list[_Command] = []
        self._node, self._faults, self._peer = node, faults, peer
        self._waiting: list[Callable[[], None]] = []
        self._counted = False

    def may_enter(self, user: str, key: paramiko.PKey) -> bool:
        """Tell whether this key opens the node to this user."""
        return user == self._node.user and key == self._node._client_key and not self._faults.reject_auth

    def count(self) -> None:
        """Count the login, once; its first session is where it shows."""
        if not self._counted:
            self._counted = True
            self._node._count(logins=1)

    def run(self, channel: paramiko.Channel, argv: list[str]) -> bool:
        """Run a command, its pumps as soon as `start_waiting` says so, and tell whether that was possible."""
        try:
            command = self._node._spawn(channel, argv, self._peer)
        except OSError:
            return False
        self.commands.append(command)
        self._waiting += [partial(self._node._thread, "command", work) for work in (command.feed, command.finish)]
        return True

    def run_sftp(self, channel: paramiko.Channel) -> bool:
        """Run the real sftp-server, where the machine has one and the node does not hide it."""
        server = next((path for path in SFTP_SERVERS if Path(path).exists()), None)
        hidden = "sftp-server" in self._node.faults.hidden_tools
        return server is not None and not hidden and self.run(channel, [server])

    def start_waiting(self) -> None:
        """Start the pumps of the commands whose clients were told that they run."""
        while self._waiting:
            self._waiting.pop(0)()

    def end(self, closing: threading.Event) -> None:
        """Let the commands notice their closed pipes, then kill them; at once when the node closes."""
        self.start_waiting()
        patience = time.monotonic() + GRACE
        while time.monotonic() < patience and not all(command.finished for command in self.commands):
            if closing.wait(0.02):
                break
        for command in self.commands:
            command.kill()


def _serve(visit: _Visit, sock: socket.socket, host_key: paramiko.PKey) -> paramiko.Transport:
    """Start SSH's server side on `sock`; here is where a process first pays for the import of paramiko."""
    import paramiko
    from paramiko import common
    from paramiko.packet import Packetizer

    class Wire(Packetizer):
        REKEY_BYTES = REKEY_BYTES_OVERFLOW_MAX = 1 << 40  # the client decides when to renew the keys

        def start_handshake(self, timeout: float) -> None:
            pass  # paramiko's timer is a thread that outlives a connection cut in its handshake

        def read_message(self) -> tuple[int, paramiko.Message]:
            # Who reads the next message has replied to the last one: a command started sooner could end, and
            # close its channel, before the client hears that it was accepted.
            visit.start_waiting()
            return super().read_message()

    class Rules(paramiko.ServerInterface):
        def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002 - paramiko's signature
            return "publickey"

        def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
            return common.AUTH_SUCCESSFUL if visit.may_enter(username, key) else common.AUTH_FAILED

        def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002 - the same
            if kind != "session":
                return common.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
            visit.count()
            return common.OPEN_SUCCEEDED

        def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
            return visit.run(channel, ["/bin/sh", "-c", os.fsdecode(command)])

        def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
            return visit.run(channel, ["/bin/sh"])

        def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
            return name == "sftp" and visit.run_sftp(channel)

    buffered = cast("socket.socket", _Buffered(sock))
    transport = paramiko.Transport(buffered, WINDOW, PACKET, packetizer_class=Wire)
    transport.set_log_channel(_quiet_log())
    transport.add_server_key(host_key)
    options = transport.get_security_options()
    # Left the choice, clients take CTR with a MAC computed in Python.
    options.ciphers = [cipher for cipher in options.ciphers if "gcm" in cipher] or options.ciphers
    transport.start_server(threading.Event(), Rules())
    return transport


class EmbeddedNode:
    """Serve SSH on a port of 127.0.0.1 and run what clients ask for in a temporary home.

    It needs neither root nor sshd; commands are real, run as whoever runs this process, and are not confined.
    `start()` and `close()` do what entering and leaving the context does; both may be repeated, and a node that
    was closed can be started again, on another port. After close no thread, process, port, mount or temporary
    file of the node is left; a process that is killed outright leaves them.

    Set `faults` at any time: connections and commands that begin afterwards have the new ones. A changed
    `refuse_logins` counts anew; a changed `disk_bytes` resizes what was mounted at start, and otherwise limits files.
    """

    host = "127.0.0.1"
    user = "rrmove"
    home: Path
    """The node's home, to be looked at from outside."""
    port: int
    identity: Path
    """The client's private key."""
    known_hosts: Path
    ssh_config: Path
    """Makes `ssh -F FILE NAME` work."""

    def __init__(self, faults: Faults = FAULTLESS, name: str = "embedded", directory: Path | None = None) -> None:
        """Describe a node; nothing is opened before `start`.

        With `directory` its `home` lives there and survives the close; without, everything is temporary.
        """
        self.name = name
        self.connections = self.logins = self.resets = self.bytes_in = 0
        """Connections accepted, those that opened a session, those reset by a fault; wire bytes from clients."""
        self._faults, self._refusals, self._dice = faults, faults.refuse_logins, _dice(faults)
        self._paces = (Pace(faults.rate), Pace(faults.rate))
        self._directory = directory
        self._lock = threading.Lock()
        self._running = self._mounted = False

    def __enter__(self) -> Self:
        """Start the node."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the node."""
        self.close()

    @property
    def faults(self) -> Faults:
        """The faults that the next connection and the next command will have."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        with self._lock:
            before, self._faults = self._faults, faults
            if faults.refuse_logins != before.refuse_logins:
                self._refusals = faults.refuse_logins
            if faults.seed != before.seed:
                self._dice = _dice(faults)
            if faults.rate != before.rate:
                self._paces = (Pace(faults.rate), Pace(faults.rate))
        resized = self._mounted and faults.disk_bytes != before.disk_bytes
        if resized and not _mount("-o", f"remount,{_size(faults.disk_bytes)}", str(self.home)):
            raise OSError(f"{self.home} holds more than {faults.disk_bytes} bytes already")

    @property
    def temporary(self) -> Path:
        """Where programs on the node have their temporary files, to be looked at from outside."""
        return self._work / "tmp"

    def processes(self) -> dict[int, str]:
        """Give the processes that run on the node, with their command lines."""
        from .outside import marked

        return marked(f"{MARK}={self._mark}")

    def limit_files(self, most: int | None) -> None:
        """Let no file on the node get larger than `most` bytes, for what runs there already, too; None lifts it."""
        import resource

        self.faults = replace(self.faults, file_bytes=most)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if most is None else most, hard))

    def start(self) -> None:
        """Open the node; a repeat does nothing. Raises OSError where no port or directory can be had."""
        if self._running:
            return
        self._root = self._directory or Path(tempfile.mkdtemp(prefix="rrmove-node-"))
        self._work = self._root / ".node"
        self.home = self._root / "home"
        self._stopped, self._stop = os.pipe()  # the first becomes readable once the second is closed
        self._listener = socket.socket()
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._bins: dict[frozenset[str], Path] = {}
        self._mark = secrets.token_hex(8)
        self._running = True
        atexit.register(self.close)
        try:
            for path in (self.home, self._work / "tmp"):
                path.mkdir(parents=True, exist_ok=True)
            if self._faults.disk_bytes is not None and os.geteuid() == 0:
                size = _size(self._faults.disk_bytes)
                self._mounted = _mount("-t", "tmpfs", "-o", f"{size},mode=0700", "rrmove-node", str(self.home))
                if self._mounted:
                    _mount("--make-private", str(self.home))
            self._listener.bind((self.host, 0))
            self._listener.listen(128)
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            self._write_client_files()
            self._thread("accept", self._accept)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End connections and commands, and remove what the node made; a repeat does nothing."""
        if not self._running:
            return
        self._running = False
        atexit.unregister(self.close)
        self._closing.set()
        os.close(self._stop)
        self._join("accept")
        self._listener.close()
        self._join("connection")
        self._kill_marked()
        self._join("command")
        os.close(self._stopped)
        if self._mounted:
            subprocess.run(["umount", "-l", self.home], check=False, capture_output=True)
            self._mounted = False
        for made in (*self._bins.values(), self._work if self._directory else self._root):
            shutil.rmtree(made, ignore_errors=True)

    def _write_client_files(self) -> None:
        self._host_key, host_line = _make_key(self._work / "host_key")
        self.identity = self._work / "identity"
        self._client_key, _ = _make_key(self.identity)
        self.known_hosts = self._work / "known_hosts"
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {host_line}\n")
        self.ssh_config = self._work / "ssh_config"
        self.ssh_config.write_text(
            f"Host {self.name}\n  HostName {self.host}\n  Port {self.port}\n  User {self.user}\n"
            f'  IdentityFile "{_escaped(self.identity)}"\n  IdentitiesOnly yes\n'
            f'  UserKnownHostsFile "{_escaped(self.known_hosts)}"\n  GlobalKnownHostsFile /dev/null\n'
            "  StrictHostKeyChecking yes\n"
        )

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._stopped, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        while self._stopped not in dict(poll.poll()):
            try:
                client, peer = self._listener.accept()
            except OSError:  # it was gone before we came
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                refused = self._refusals > 0
                self._refusals -= refused
                faults = self._faults
                ages = draw(faults.reset_after_seconds, self._dice), draw(faults.silent_after_seconds, self._dice)
            if refused:
                client.close()
            else:
                self._thread("connection", partial(self._attend, client, peer, faults, ages))

    def _attend(self, client: socket.socket, peer: tuple[str, int], faults: Faults, ages: tuple[float, float]) -> None:
        """Serve one connection to its end, and its commands to theirs."""
        inner, outer = socket.socketpair()
        for end in (inner, outer):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE)
        visit = _Visit(self, faults, peer)
        transport = _serve(visit, inner, self._host_key)
        relay = Relay(
            client, outer, faults=faults, ages=ages, paces=self._paces,
            carried=lambda size: self._count(bytes_in=size), cut=partial(self._count, resets=1),
        )  # fmt: skip
        relay.run(self._stopped)
        transport.join()
        visit.end(self._closing)

    def _spawn(self, channel: paramiko.Channel, argv: list[str], peer: tuple[str, int]) -> _Command:
        """Start a command as the present faults have it; raises OSError where the machine cannot."""
        faults = self.faults
        limits = [faults.file_bytes, None if self._mounted else faults.disk_bytes]
        most = min((limit for limit in limits if limit is not None), default=None)
        if most is not None:
            # A process that ignores SIGXFSZ gets EFBIG; ulimit counts in blocks of 512 bytes.
            limit = 'trap \'\' XFSZ; ulimit -f "$0" && exec "$@"'
            argv = ["/bin/sh", "-c", limit, str(most // 512), *argv]
        hidden = faults.hidden_tools
        path = str(self._tools(hidden)) if hidden else ":".join(SEARCHED)
        env = {
            "HOME": str(self.home), "PATH": path, "LC_ALL": "C.UTF-8",
            "USER": self.user, "LOGNAME": self.user, "SHELL": "/bin/sh", "TMPDIR": str(self._work / "tmp"),
            "SSH_CONNECTION": f"{peer[0]} {peer[1]} {self.host} {self.port}", MARK: self._mark,
        }  # fmt: skip
        return _Command(channel, argv, env, self.home, SEVEN_BITS if faults.seven_bits else None)

    def _tools(self, hidden: frozenset[str]) -> Path:
        """Build the directory of links that PATH leads to; a repeat for the same set answers at once."""
        with self._lock:
            if hidden not in self._bins:
                # A thousand links took 25 ms in memory, and 1.3 s on the ext4 of a virtual machine.
                memory = MEMORY if os.access(MEMORY, os.W_OK) else self._work
                self._bins[hidden] = Path(tempfile.mkdtemp(prefix="rrmove-node-", dir=memory))
                _link_tools(self._bins[hidden], hidden)
            return self._bins[hidden]

    def _count(self, *, logins: int = 0, resets: int = 0, bytes_in: int = 0) -> None:
        with self._lock:
            self.logins += logins
            self.resets += resets
            self.bytes_in += bytes_in

    def _thread(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        with self._lock:
            self._threads = [known for known in self._threads if known.is_alive()]
            thread.start()
            self._threads.append(thread)

    def _join(self, name: str) -> None:
        for thread in [known for known in self._threads if known.name == name]:
            thread.join()

    def _kill_marked(self) -> None:
        """Kill every process that still carries the node's mark: what left its group, as a daemon does."""
        mark = f"{MARK}={self._mark}".encode()
        marked = True
        while marked:
            marked = False
            for environ in Path("/proc").glob("[0-9]*/environ"):
                with contextlib.suppress(OSError):
                    if mark in environ.read_bytes():
                        os.kill(int(environ.parent.name), signal.SIGKILL)
                        marked = True


def _link_tools(directory: Path, hidden: frozenset[str]) -> None:
    """Link all programs of the machine into `directory`, the first of each name, without the hidden ones."""

    def is_hidden(name: str) -> bool:
        return any(
            name == tool or (name.startswith(tool) and not (tool[-1].isalpha() and name[len(tool)].isalpha()))
            for tool in hidden
        )

    seen: set[str] = set()
    for searched in dict.fromkeys(map(os.path.realpath, SEARCHED)):
        with contextlib.suppress(FileNotFoundError), os.scandir(searched) as entries:
            for entry in entries:
                leads_to = Path(entry.path).readlink().name if entry.is_symlink() else entry.name
                if entry.name not in seen and not is_hidden(entry.name) and not is_hidden(leads_to):
                    seen.add(entry.name)
                    (directory / entry.name).symlink_to(entry.path)


def _make_key(path: Path) -> tuple[paramiko.PKey, str]:
    """Make an ed25519 key at `path`, readable by its owner only, and tell it and its public line."""
    import paramiko
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    secret = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    path.touch(0o600)
    path.write_bytes(secret)
    key = paramiko.Ed25519Key(filename=path)
    return key, f"{key.get_name()} {key.get_base64()}"


def _quiet_log() -> str:
    """Name the log of paramiko's server side, which goes nowhere: a cut connection is no news here.

    Clients in this process keep theirs; only the last resort, tracebacks on stderr, is taken from them.
    """
    for name in (QUIET, "paramiko"):
        log = logging.getLogger(name)
        if not log.handlers:
            log.addHandler(logging.NullHandler())
    logging.getLogger(QUIET).propagate = False
    return QUIET


def _dice(faults: Faults) -> random.Random:
    return random.Random(faults.seed)  # noqa: S311 - has to be repeatable


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")


def _size(disk_bytes: int | None) -> str:
    return f"size={max(4096, disk_bytes) if disk_bytes is not None else 0}"  # 0 is no limit to tmpfs


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
