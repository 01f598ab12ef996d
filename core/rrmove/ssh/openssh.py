"""Channels through the OpenSSH client: one `ssh` process each, never multiplexed over one connection."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from typing import TYPE_CHECKING

from rrmove.errors import Fatal, RRMoveError
from rrmove.ssh.addresses import read_report
from rrmove.ssh.config import argv_options, destination
from rrmove.ssh.dial import SAYS
from rrmove.ssh.failures import explain_login
from rrmove.ssh.pipes import PipeChannel, clients

if TYPE_CHECKING:
    from rrmove.model import Node
    from rrmove.ssh.addresses import Addresses, Dialed

CONNECT_TIMEOUT = 10  # seconds; a cold login over a 200 ms link took 2.75
READ = 256 * 1024  # bytes of what ssh says on stderr
UNTOLD = ("debug1: ", "OpenSSH_", "Authenticated to ", SAYS)  # what begins lines that explain nothing
LOOK = 0.004  # s between two looks at what ssh says while it connects

# What a lane needs whatever ssh_config says: no terminal, no forwardings that a second connection
# could not have, no shared master (lanes would share its fate), no questions.
LANE_OPTIONS = (
    "-T",
    "-a",
    "-x",
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={CONNECT_TIMEOUT}"),
    *("-o", "ControlMaster=no"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "RemoteCommand=none"),
    *("-o", "RequestTTY=no"),
    *("-o", "PermitLocalCommand=no"),
    *("-o", "LogLevel=DEBUG1"),  # so that it says when TCP's handshake was through: one round trip
)
ALONE = ("-o", "ControlPath=none")


def start(  # noqa: PLR0913  two that everyone gives, the rest by name
    node: Node,
    command: str,
    *,
    ssh: str = "ssh",
    alone: bool = False,
    more: tuple[str, ...] = (),
    addresses: Addresses | None = None,
) -> OpenSSHChannel:
    """Start `ssh` on a command; unless `alone`, over a master connection where the user keeps one.

    Where the node has several `addresses`, `ssh` goes on with the connection of the one that answers first. Blocks
    for some 10 ms the first time then.
    """
    host = destination(node)
    course = addresses.course() if addresses is not None else None
    racing = course.flags(report=True) if course is not None else ()
    options = (*LANE_OPTIONS, *(ALONE if alone else ()), *more, *racing, *argv_options(node))
    return OpenSSHChannel(
        (ssh, *options, "--", host, command), node=node, host=host, addresses=addresses if racing else None
    )


class OpenSSHChannel(PipeChannel):
    """A command on the node, run by an `ssh` process in a process group of its own.

    With `addresses`, `ssh` says on stderr at which of them a race was won.
    """

    def __init__(self, argv: tuple[str, ...], *, node: Node, host: str, addresses: Addresses | None = None) -> None:
        self._node, self._host, self._addresses = node, host, addresses
        self._dialed: Dialed | None = None
        self._hearing = threading.Lock()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        try:
            self._process = subprocess.Popen(
                argv,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                start_new_session=True,
            )
        except OSError as error:
            self._words.close()
            raise Fatal(
                f"cannot run {argv[0]!r}: {error.strerror}",
                node=node.name,
                remedy="Install the OpenSSH client, or use `--ssh paramiko`",
            ) from error
        clients.add(self._process.pid)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process.stdin as into, self._process.stdout as out_of:
            super().__init__(os.dup(into.fileno()), os.dup(out_of.fileno()))
        threading.Thread(target=self._time_handshake, name="ssh-handshake", daemon=True).start()

    def _time_handshake(self) -> None:
        """Watch ssh connect; no second connection has to be made to learn the round trip time."""
        begun, last = None, time.monotonic() + CONNECT_TIMEOUT
        while (now := time.monotonic()) < last and not self._killed:
            with contextlib.suppress(OSError, ValueError):  # it may be closed under us
                words = os.pread(self._words.fileno(), 16 * 1024, 0)
                if begun is None and b"\ndebug1: Connecting to " in words:
                    begun = now
                if self._addresses is not None and self._hear(words) is not None:
                    return
                if b"\ndebug1: Connection established" in words:
                    self.rtt = None if begun is None else max(LOOK / 2, now - begun)
                    return
                if b"\ndebug1: Executing proxy command" in words:
                    return
            time.sleep(LOOK)

    def _hear(self, words: bytes) -> Dialed | None:
        """Take note of who won the race, once."""
        with self._hearing:
            report = read_report(words.decode("utf-8", "replace")) if self._addresses and self._dialed is None else None
            if report is not None and report.won is not None and self._addresses is not None:
                place, address, self.rtt, seconds = report.won
                self._dialed = self._addresses.dialed(place, address, seconds, report.tried)
            return self._dialed

    def arrived(self) -> None:
        """Take note that the login went through."""
        if self._addresses is not None:
            dialed = self._hear(os.pread(self._words.fileno(), READ, 0))
            if dialed is not None:
                dialed.arrived()

    def cause(self) -> RRMoveError:
        """Say why the stream ended, in ssh's own words where it has any."""
        try:
            status: int | None = self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            status = None
        self._words.seek(0)
        said = self._words.read(READ)
        lines = said.decode("utf-8", "replace").splitlines(keepends=True)
        words = "".join(line for line in lines if not line.startswith(UNTOLD))
        if self._addresses is not None:
            dialed, report = self._hear(said), read_report(said.decode("utf-8", "replace"))
            if dialed is None and report is not None:
                return self._addresses.unanswered(report.tried)
            if dialed is not None:
                return dialed.judged(explain_login(words, status, node=self._node.name, host=self._host))
        return explain_login(words, status, node=self._node.name, host=self._host)

    def close(self) -> None:
        """Release the descriptors once no thread uses them any more."""
        super().close()
        self._words.close()

    def _end(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it may end in this very moment
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        clients.discard(self._process.pid)
