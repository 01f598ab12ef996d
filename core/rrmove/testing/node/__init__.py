"""The embedded node: an SSH server inside the process that runs real commands in a temporary home."""

# Late imports: paramiko costs 125 ms, which only those pay who start a node.

from __future__ import annotations

import atexit
import contextlib
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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rrmove.testing.faults import Faults, Pace, Relay, draw
from rrmove.testing.node.command import PIPE, SEARCHED, Command, link_tools
from rrmove.testing.node.visit import Visit, serve

if TYPE_CHECKING:
    from collections.abc import Callable

    import paramiko

FAULTLESS = Faults()
MEMORY = "/dev/shm"  # noqa: S108 - used through mkdtemp
SEVEN_BITS = bytes(range(128)) + b"?" * 128
MARK = "RRMOVE_EMBEDDED_NODE"  # in the environment of each command: how close() finds what escaped its group


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
        from rrmove.testing.outside import marked

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
        self._host_key, host_line = make_key(self._work / "host_key")
        self.identity = self._work / "identity"
        self._client_key, _ = make_key(self.identity)
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
        visit = Visit(self, faults, peer)
        transport = serve(visit, inner, self._host_key)
        relay = Relay(
            client, outer, faults=faults, ages=ages, paces=self._paces,
            carried=lambda size: self._count(bytes_in=size), cut=partial(self._count, resets=1),
        )  # fmt: skip
        relay.run(self._stopped)
        transport.join()
        visit.end(self._closing)

    def _spawn(self, channel: paramiko.Channel, argv: list[str], peer: tuple[str, int]) -> Command:
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
        return Command(channel, argv, env, self.home, SEVEN_BITS if faults.seven_bits else None)

    def _tools(self, hidden: frozenset[str]) -> Path:
        """Build the directory of links that PATH leads to; a repeat for the same set answers at once."""
        with self._lock:
            if hidden not in self._bins:
                # A thousand links took 25 ms in memory, and 1.3 s on the ext4 of a virtual machine.
                memory = MEMORY if os.access(MEMORY, os.W_OK) else self._work
                self._bins[hidden] = Path(tempfile.mkdtemp(prefix="rrmove-node-", dir=memory))
                link_tools(self._bins[hidden], hidden)
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


def make_key(path: Path) -> tuple[paramiko.PKey, str]:
    """Make an ed25519 key at `path`, readable by its owner only, and tell it and its public line."""
    import paramiko
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    secret = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    path.touch(0o600)
    path.write_bytes(secret)
    key = paramiko.Ed25519Key(filename=path)
    return key, f"{key.get_name()} {key.get_base64()}"


def _dice(faults: Faults) -> random.Random:
    return random.Random(faults.seed)  # noqa: S311 - has to be repeatable


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")


def _size(disk_bytes: int | None) -> str:
    return f"size={max(4096, disk_bytes) if disk_bytes is not None else 0}"  # 0 is no limit to tmpfs


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
