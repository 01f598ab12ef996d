"""Visits: one connection to an embedded node as SSH sees it, from the banner to the end of its commands."""

# ruff: noqa: SLF001
# A visit and its node are one machine, and what they say to one another is for nobody else to call.

from __future__ import annotations

import logging
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rrmove.testing.node.command import PACKET, READ, WINDOW

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import paramiko

    from rrmove.testing.faults import Faults
    from rrmove.testing.node import EmbeddedNode
    from rrmove.testing.node.command import Command

SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server",
                "/usr/libexec/sftp-server")  # fmt: skip
GRACE = 2.0  # seconds a command has, once its connection died, to notice its closed pipes
QUIET = "rrmove.testing.node.paramiko"


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


class Visit:
    """One connection as the node sees it: who may log in, and which commands it started."""

    def __init__(self, node: EmbeddedNode, faults: Faults, peer: tuple[str, int]) -> None:
        self.commands: list[Command] = []
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


def serve(visit: Visit, sock: socket.socket, host_key: paramiko.PKey) -> paramiko.Transport:
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
