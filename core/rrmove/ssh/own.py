"""Channels through rrmove's own SSH client: the quicker login, where ssh_config asks for nothing that it cannot do."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from rrmove.errors import Fatal, RRMoveError, Transient, Unusable, UsageError
from rrmove.ssh.beginning import begin
from rrmove.ssh.failures import HostKeyError, NoLogin, NotOurs
from rrmove.ssh.pipes import PipeChannel, clients

if TYPE_CHECKING:
    from rrmove.model import Node
    from rrmove.ssh.addresses import Addresses
    from rrmove.ssh.beginning import Beginning

_KINDS = {kind.__name__: kind for kind in (Fatal, HostKeyError, Transient, NoLogin, NotOurs, Unusable, UsageError)}
REPORT = 64 * 1024  # bytes of a report at most


def start(node: Node, command: str, *, strict: bool, addresses: Addresses | None = None) -> OwnChannel:
    """Start to log in to a node and to run a command there; gives its channel.

    Blocks for some 20 ms, in which `ssh -G` is asked, and for the resolution of the name; of several
    `addresses`, until one has answered: raises NoLogin where none does. `strict` says that `ssh` is
    there to take over: raises NotOurs where ssh_config asks for something that only `ssh` can do; it
    is the channel's cause, too, where the node would not let us in. Raises UsageError where
    ssh_config is broken.
    """
    client = _take()
    try:
        begun = begin(node, strict=strict, addresses=addresses)
        return OwnChannel(client, node, command, begun, strict=strict)
    except BaseException:
        _release(client)
        raise


_guard = threading.Lock()
_running: list[Client] = []  # the one that new channels share, or none


class Client:
    """The client's process, one for all that want it at a time; it ends with the last of them."""

    def __init__(self) -> None:
        self.users = 0
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with_ssh = ("--with-ssh",) if shutil.which("ssh") else ()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-S", "-m", "rrmove.ssh.client", *with_ssh],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    start_new_session=True,
                )
            except OSError as error:
                self._orders.close()
                raise Unusable(f"cannot run {sys.executable!r}: {error.strerror}") from error
        clients.add(self._process.pid)

    @property
    def runs(self) -> bool:
        """Whether it can still take orders."""
        return self._process.poll() is None

    def order(self, data: bytes, descriptors: list[int]) -> None:
        """Have it serve one more connection."""
        try:
            socket.send_fds(self._orders, [data], descriptors)
        except OSError as error:
            raise Transient("rrmove's own SSH client has ended unexpectedly") from error

    def end(self) -> None:
        """Have it go, and wait until it has."""
        self._orders.close()
        self._process.wait()
        clients.discard(self._process.pid)


def _take() -> Client:
    """Give the process that runs, or a new one; `_release()` lets go of it."""
    with _guard:
        if not _running or not _running[0].runs:
            _running[:] = [Client()]
        _running[0].users += 1
        return _running[0]


def _release(client: Client) -> None:
    with _guard:
        client.users -= 1
        if client.users:
            return
        if client in _running:
            _running.remove(client)
    client.end()


class OwnChannel(PipeChannel):
    """A command on the node, over a connection that our own client made."""

    def __init__(self, client: Client, node: Node, command: str, begun: Beginning, *, strict: bool) -> None:
        self._client, self._node, self._strict, self._dialed = client, node, strict, begun.dialed
        self._reports, reporting = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._error: RRMoveError | None = None
        self._rtt: float | None = None
        self._hearing = threading.Lock()
        theirs, into = os.pipe()
        out_of, sink = os.pipe()
        super().__init__(into, out_of)
        descriptors = [theirs, sink, reporting.fileno()]
        with reporting, begun:
            if begun.sock is not None:
                descriptors.append(begun.sock.fileno())
            try:
                client.order(_order(node, begun, command), descriptors)
            finally:
                os.close(theirs)
                os.close(sink)

    @property
    def rtt(self) -> float | None:  # type: ignore[override]
        """Seconds of TCP's round trip, as soon as the client has told it."""
        if self._rtt is None:
            self._hear(0.0)
        return self._rtt

    def cause(self) -> RRMoveError:
        """Say why the stream ended, in the client's words."""
        self._hear(2.0)
        error = self._error or Transient("the connection was lost", node=self._node.name)
        if self._dialed is not None and not (self._strict and isinstance(error, HostKeyError) and not error.certain):
            error = self._dialed.judged(error)
        if self._strict and isinstance(error, Fatal):
            return NotOurs(error.what, node=error.node, tried=error.tried, remedy=error.remedy)
        return error

    def arrived(self) -> None:
        """Take note that the login went through."""
        if self._dialed is not None:
            self._dialed.arrived()

    def close(self) -> None:
        """Release the descriptors once no thread uses them any more."""
        super().close()
        self._reports.close()
        client, self._client = self._client, None  # type: ignore[assignment]
        if client is not None:
            _release(client)

    def _end(self) -> None:
        self._reports.shutdown(socket.SHUT_RDWR)

    def _hear(self, seconds: float) -> None:
        """Take in the reports that are there, or come within so many seconds, up to the last."""
        with self._hearing:
            while self._error is None and select.select([self._reports], [], [], seconds)[0]:
                try:
                    data = self._reports.recv(REPORT)
                except OSError:
                    return
                if not data:
                    return
                self._note(json.loads(data))

    def _note(self, report: dict[str, Any]) -> None:
        if "rtt" in report:
            self._rtt = report["rtt"]
        if "error" in report:
            said = report["error"]
            kind = _KINDS.get(said["kind"], Transient)
            self._error = kind(said["what"], node=self._node.name, tried=said["tried"], remedy=said["remedy"])


def _order(node: Node, begun: Beginning, command: str) -> bytes:
    ssh = node.ssh
    words = {
        "name": node.name,
        "host": ssh.host,
        "port": ssh.port,
        "user": ssh.user,
        "identity": None if ssh.identity is None else str(ssh.identity),
        "config": None if ssh.config is None else str(ssh.config),
    }
    options = None if begun.options is None else dict(begun.options)
    return json.dumps({"node": words, "options": options, "strict": begun.strict, "command": command}).encode()
