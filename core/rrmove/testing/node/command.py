"""Commands: what runs on an embedded node, and the tools that it finds there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    import paramiko

SEARCHED = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
WINDOW = 4 * 1024 * 1024  # bytes a channel may have on its way to the node
PACKET = 32 * 1024  # what OpenSSH takes and sends at most
PIECE = PACKET - 64  # paramiko keeps 64 bytes for its headers, and would send a whole packet as two
PIPE = 1024 * 1024  # what Linux lets anyone have as a pipe
READ = 256 * 1024


class Command:
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


def link_tools(directory: Path, hidden: frozenset[str]) -> None:
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
