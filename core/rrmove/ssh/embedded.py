"""Logins through paramiko, for our own SSH client: hops, host keys, and the channel to a command."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import paramiko

from rrmove.errors import Fatal, RRMoveError
from rrmove.ssh.authentication import Authentication, EagerTransport
from rrmove.ssh.beginning import Beginning
from rrmove.ssh.config import SSHConfig, effective_sync
from rrmove.ssh.failures import HostKeyError, explain_login
from rrmove.ssh.hostkeys import Verdict, known_kinds, names_of, remember, verdict
from rrmove.ssh.settings import LoginSettings, hop_node, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rrmove.model import Node

CONNECT_TIMEOUT = 10.0  # seconds, for each of TCP, key exchange and authentication, as with `ssh` here
WINDOW = 16 << 20  # bytes on their way to us; measured: paramiko's 2 MiB bound pulls over long links
PACKET = 32 * 1024  # what OpenSSH takes at most
SLICE = PACKET - 64  # what paramiko makes one packet of; 32 KiB sends beat 1 MiB sends by 0.57 to 0.40
READ_AHEAD = 256 * 1024  # bytes taken at a time of what the command says
WORDS = 64 * 1024  # bytes of stderr that are kept
MOST_HOPS = 8
FORBIDDEN = 1  # SSH_OPEN_ADMINISTRATIVELY_PROHIBITED, RFC 4254
SSH_CONFIGS = (Path("~/.ssh/config"), Path("/etc/ssh/ssh_config"))
LOG = "rrmove.ssh.embedded"


def open_channel(login: ParamikoLogin, command: str, on_rtt: Callable[[float], None] | None = None) -> ParamikoChannel:
    """Log in and start a command. Blocks; `on_rtt` is told the seconds of TCP's round trip where they can be seen.

    Raises Fatal where the host key, the authentication or the configuration is refused, NoLogin
    where no connection comes about, Transient where one is lost. Asks no questions, ever.
    """
    _hush()
    try:
        return ParamikoChannel(login, login.start(command, on_rtt))
    except BaseException:
        login.end()
        raise


class ParamikoChannel:
    """A command on the node, over a connection of its own."""

    def __init__(self, login: ParamikoLogin, channel: paramiko.Channel) -> None:
        self._login, self._channel = login, channel
        self._words = b""

    def receive(self) -> bytes:
        """Wait for what the command has to say next; nothing at the end of the stream."""
        data: bytes = self._channel.recv(READ_AHEAD)
        if self._channel.recv_stderr_ready():
            self._words = (self._words + self._channel.recv_stderr(WORDS))[-WORDS:]
        return data

    def finish(self) -> None:
        """Tell the command that its input ends. Raises OSError where the connection is gone."""
        self._channel.shutdown_write()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`; blocks while the window is full. Raises OSError at the end."""
        view = memoryview(data)
        while view:
            try:
                sent = self._channel.send(bytes(view[:SLICE]))
            except (EOFError, paramiko.SSHException) as error:
                raise BrokenPipeError(str(error) or "the connection is gone") from error
            if not sent:
                raise BrokenPipeError("the channel is closed")
            view = view[sent:]

    def cause(self) -> RRMoveError:
        """Say why the stream ended, in the words of the node where it has any."""
        channel = self._channel
        transport = channel.get_transport()
        end = time.monotonic() + 2.0
        while transport.is_active() and not channel.exit_status_ready() and time.monotonic() < end:
            channel.status_event.wait(0.05)
        while channel.recv_stderr_ready():
            self._words += channel.recv_stderr(WORDS)
        status = channel.recv_exit_status() if channel.exit_status_ready() else None
        words = self._words[-WORDS:].decode("utf-8", "replace")
        if status in {None, -1}:
            # No status: the connection ended before the command did, whatever that had said by then.
            words, status = f"{words}\nConnection closed: {transport.get_exception() or 'reset'}", None
        return explain_login(words, status, node=self._login.node.name, host=self._login.host)


def _hush() -> None:
    # Without any handler Python would print paramiko's tracebacks to stderr.
    for name in ("paramiko", LOG):
        log = logging.getLogger(name)
        if not log.handlers:
            log.addHandler(logging.NullHandler())


class ParamikoLogin:
    """The way to a node: a transport, those of the hops below it, sockets, the proxy's process."""

    def __init__(self, node: Node, begun: Beginning | None = None) -> None:
        self.node = node
        self.host = node.ssh.host or node.name
        self.begun = begun or Beginning()
        self.transports: list[paramiko.Transport] = []
        self.sockets: list[socket.socket] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.proxy_words: list[IO[bytes]] = []
        self.ended = threading.Lock()

    def fail(self, words: str) -> RRMoveError:
        """Translate words in the manner of ssh's to the error that they mean."""
        return explain_login(words, None, node=self.node.name, host=self.host)

    def cut(self) -> None:
        """End the connection at once, from any thread; whoever reads or writes finds its end."""
        for sock in self.sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed by the other side
        for process in self.processes:
            if process.poll() is None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # ended in this very moment

    def end(self) -> None:
        """End the connection and wait for its threads and processes; a repeat does nothing."""
        self.cut()
        with self.ended:
            for transport in reversed(self.transports):
                transport.close()
                transport.join()
            for sock in self.sockets:
                sock.close()
            for process in self.processes:
                process.wait()
            for words in self.proxy_words:
                words.close()
            self.transports, self.sockets, self.processes, self.proxy_words = [], [], [], []

    def lost(self, error: BaseException | None) -> RRMoveError:
        """Say what the end of a connection means that had not logged in yet."""
        said = ""
        for words in self.proxy_words:
            words.seek(0)
            said += words.read(WORDS).decode("utf-8", "replace")
        if said:
            return self.fail(said)
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
            return self.fail(f"Unable to negotiate: {error}")
        return self.fail(f"kex_exchange_identification: Connection closed by remote host ({error})")

    def start(self, command: str, on_rtt: Callable[[float], None] | None = None) -> paramiko.Channel:
        """Log in and start a command."""
        transport = self.reach(self.node, on_rtt=on_rtt)
        try:
            if transport.opening is not None:
                channel = transport.opening.result(CONNECT_TIMEOUT)
            else:
                channel = transport.open_session(timeout=CONNECT_TIMEOUT)
            _execute(transport, channel, command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            if transport.is_active():
                raise self.fail(f"Session open refused by peer: {error}") from error
            raise self.fail(f"Connection reset: {error}") from error
        return channel

    # One hop after the other

    def reach(
        self,
        node: Node,
        hops: tuple[str, ...] | None = None,
        depth: int = 0,
        on_rtt: Callable[[float], None] | None = None,
    ) -> EagerTransport:
        """Log in to a node, through the hops given or those of its settings."""
        if depth > MOST_HOPS:
            raise Fatal("ProxyJump leads in a circle", node=self.node.name, remedy="Mend your ssh_config")
        options = self.begun.options if depth == 0 and self.begun.options is not None else _options(node)
        settings = read_settings(node, options, getpass.getuser())
        hops = settings.jumps if hops is None else hops
        sock: socket.socket | _Prompt | paramiko.Channel
        if hops:
            below = self.reach(hop_node(hops[-1], node), hops[:-1] or None, depth + 1)
            sock = self._through(below, settings)
        elif settings.proxy_command is not None:
            sock = self._proxied(settings.proxy_command)
        else:
            connected = self._connected(settings)
            sock = _Prompt(connected)
            if depth == 0 and on_rtt is not None and (rtt := _round_trip(connected)):  # else it is the jump host's
                on_rtt(rtt)
        transport = self._greeted(sock, settings)
        self._check_host_key(transport, settings)
        # Where `ssh` is there to take over, an odd server's confusion costs nothing. A hop has no session.
        transport.eager = self.begun.strict and depth == 0 and "OpenSSH" in transport.remote_version
        Authentication(transport, settings, self.fail).run()
        return transport

    def _connected(self, settings: LoginSettings) -> socket.socket:
        where = f"{settings.host} port {settings.port}"
        try:
            sock = self._begun_socket() or socket.create_connection((settings.host, settings.port), CONNECT_TIMEOUT)
        except socket.gaierror as error:
            again = "Temporary failure" if error.errno == socket.EAI_AGAIN else str(error.strerror)
            raise self.fail(f"Could not resolve hostname {settings.host}: {again}") from error
        except TimeoutError as error:
            raise self.fail(f"connect to host {where}: Connection timed out") from error
        except OSError as error:
            raise self.fail(f"connect to host {where}: {error.strerror or error}") from error
        # Without it Nagle costs 40 ms for each small request.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.sockets.append(sock)
        return sock

    def _begun_socket(self) -> socket.socket | None:
        """Give the connection that was begun ahead, once it is there; raises what connecting does."""
        sock, self.begun.sock = self.begun.sock, None
        if sock is None:
            return None
        if not select.select([], [sock], [], CONNECT_TIMEOUT)[1]:
            sock.close()
            raise TimeoutError
        trouble = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if trouble:
            sock.close()
            raise OSError(trouble, os.strerror(trouble))
        sock.setblocking(True)
        return sock

    def _proxied(self, command: str) -> socket.socket:
        # paramiko's own ProxyCommand spins when the command ends; a pair of sockets behaves like a connection.
        ours, theirs = socket.socketpair()
        self.sockets.append(ours)
        words = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the connection
        self.proxy_words.append(words)
        with theirs:
            shell = os.environ.get("SHELL") or "/bin/sh"
            argv = [shell, "-c", f"exec {command}"]
            try:
                process = subprocess.Popen(
                    argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=words, start_new_session=True
                )
            except OSError as error:
                raise Fatal(
                    f"cannot run the ProxyCommand: {error.strerror}",
                    node=self.node.name,
                    tried=command,
                    remedy="Mend your ssh_config",
                ) from error
        self.processes.append(process)
        return ours

    def _through(self, below: paramiko.Transport, settings: LoginSettings) -> paramiko.Channel:
        there = (settings.host, settings.port)
        try:
            return below.open_channel("direct-tcpip", there, ("127.0.0.1", 0), timeout=CONNECT_TIMEOUT)
        except paramiko.ChannelException as error:
            if error.code == FORBIDDEN:
                raise Fatal(
                    "the jump host allows no forwarding",
                    node=self.node.name,
                    tried=f"{settings.host} port {settings.port}",
                    remedy="Ask for AllowTcpForwarding there, or take another way",
                ) from error
            # Why, paramiko keeps to itself: refused and unreachable are the same to us.
            where = f"{settings.host} port {settings.port}"
            raise self.fail(f"connect to host {where} from the jump host: No route to host ({error.text})") from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self.lost(error) from error

    def _greeted(self, sock: socket.socket | _Prompt | paramiko.Channel, settings: LoginSettings) -> EagerTransport:
        try:
            transport = EagerTransport(
                cast("socket.socket", sock), default_window_size=WINDOW, default_max_packet_size=PACKET
            )
        except (paramiko.SSHException, OSError) as error:
            raise self.lost(error) from error
        self.transports.append(transport)
        transport.set_log_channel(LOG)
        transport.auth_timeout = CONNECT_TIMEOUT
        # paramiko's timer is a thread that outlives a connection cut in its handshake; we have a clock of our own.
        transport.packetizer.start_handshake = _no_timer  # type: ignore[assignment]
        options = transport.get_security_options()
        options.ciphers = sorted(options.ciphers, key=lambda name: "gcm" not in name)
        known = known_kinds(settings.known_hosts, _known_names(settings))
        options.key_types = sorted(options.key_types, key=lambda name: name not in known)
        done = threading.Event()
        try:
            transport.start_client(done)
        except (paramiko.SSHException, OSError) as error:
            raise self.lost(error) from error
        if not done.wait(CONNECT_TIMEOUT):
            raise self.fail("banner exchange: Connection timed out")
        if not transport.is_active():
            raise self.lost(transport.get_exception())
        return transport

    def _check_host_key(self, transport: paramiko.Transport, settings: LoginSettings) -> None:
        key = transport.get_remote_server_key()
        names = _known_names(settings)
        found = verdict(settings.known_hosts, names, key.asbytes(), key.get_name())
        if found is Verdict.CHANGED:
            raise self.fail(f"Host key for {settings.host} has changed: it is {key.get_name()} {key.fingerprint}")
        if found is Verdict.REVOKED:
            raise HostKeyError(
                "the host key is marked as revoked",
                node=self.node.name,
                tried=f"{key.get_name()} {key.fingerprint}",
                remedy="Look at the @revoked lines of your known_hosts",
            )
        if found is Verdict.UNKNOWN:
            if not settings.accepts_new:
                words = f"{key.get_name()} {key.fingerprint}"
                raise self.fail(f"Host key verification failed: {words} is in no known_hosts")
            remember(settings.known_hosts, names[0], key.get_name(), key.asbytes())


class _Prompt:
    """A socket that acknowledges at once whatever it reads.

    sshd sends its answers in small pieces, and the kernel there keeps each back until the one
    before is acknowledged (Nagle); the kernel here takes 40 ms over that when we have nothing to
    say. Together they cost a login over 40 ms a fifth.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def recv(self, size: int) -> bytes:
        """Read, and have it acknowledged."""
        data = self._sock.recv(size)
        with contextlib.suppress(OSError, AttributeError):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # it does not last: anew each time
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def _round_trip(sock: socket.socket) -> float | None:
    """Ask the kernel for the round trip that TCP's handshake took, in seconds; None where it does not say."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 72)
    except (OSError, AttributeError):
        return None
    return int.from_bytes(info[68:72], sys.byteorder) / 1e6 if len(info) == 72 else None  # tcpi_rtt, in microseconds


def _execute(transport: paramiko.Transport, channel: paramiko.Channel, command: str) -> None:
    """Start a command without waiting for the reply, as what is sent next may follow at once: a round trip less."""
    message = paramiko.Message()
    message.add_byte(bytes([98]))  # SSH_MSG_CHANNEL_REQUEST, RFC 4254
    message.add_int(channel.remote_chanid)
    message.add_string("exec")
    message.add_boolean(False)  # no reply wanted: a refusal shows by the channel's end
    message.add_string(command)
    transport._send_user_message(message)  # type: ignore[attr-defined]  # noqa: SLF001  exec_command() always waits


def _no_timer(_timeout: float) -> None:
    pass


def direct_address(node: Node) -> tuple[str, int] | None:
    """Give the host and port that a login connects to; None where a proxy or jump host does. Blocks for some ms."""
    settings = read_settings(node, _options(node), getpass.getuser())
    return None if settings.jumps or settings.proxy_command else (settings.host, settings.port)


def config_by_paramiko(node: Node) -> SSHConfig:
    """Say what `ssh -G` would, where there is no ssh: paramiko reads ssh_config. Blocks for some ms."""
    options = _options_by_paramiko(node)
    settings = read_settings(node, options, getpass.getuser())
    return SSHConfig(
        hostname=settings.host,
        port=settings.port,
        user=settings.user,
        proxyjump=",".join(settings.jumps) or None,
        proxycommand=settings.proxy_command,
        options={key: tuple(values) for key, values in options.items()},
    )


def _known_names(settings: LoginSettings) -> tuple[str, ...]:
    return names_of(settings.host, settings.port, settings.host_key_alias)


def _options(node: Node) -> Mapping[str, tuple[str, ...]]:
    """Ask `ssh -G` where there is an ssh program after all; else paramiko reads the files."""
    config = effective_sync(node)
    return config.options if config is not None else _options_by_paramiko(node)


def _options_by_paramiko(node: Node) -> Mapping[str, tuple[str, ...]]:
    """Have paramiko read ssh_config. It knows Host and Match, but no Include."""
    files = [node.ssh.config] if node.ssh.config is not None else SSH_CONFIGS
    read = paramiko.SSHConfig()
    for path in files:
        try:
            with path.expanduser().open(encoding="utf-8", errors="replace") as file:
                read.parse(file)
        except OSError as error:
            if node.ssh.config is not None:
                raise Fatal(
                    f"Can't open user config file {path}: {error.strerror}", node=node.name, remedy="Mend its path"
                ) from error
        except paramiko.ConfigParseError as error:
            raise Fatal(
                f"the ssh_config cannot be read: {error}", node=node.name, tried=str(path), remedy="Mend that line"
            ) from error
    found = read.lookup(node.ssh.host or node.name)
    return {key: (value,) if isinstance(value, str) else tuple(value) for key, value in found.items()}
