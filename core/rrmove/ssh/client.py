"""rrmove's own SSH client, a program: it logs in with paramiko and joins a command on a node to two pipes.

    python -P -m rrmove.ssh.client [--with-ssh]        with one end of a Unix socket as its standard input

One process serves all connections of rrmove: it forks for each, so that paramiko is loaded once (125 ms), and no lane
waits for the interpreter's lock of another (together in one process, lanes over 150 ms gave half the rate).

Messages are JSON, in packets (SOCK_SEQPACKET). An order has `node`, `options` (ssh_config's, null where they are to
be found out here), `strict` and `command`; with it come descriptors: the command's input, its output, a socket for
reports, and a connection to the node where one was begun ahead. Reports are `{"rtt": seconds}` once TCP is connected,
and at the end `{"error": ...}`, which says why it ended. When the far end of that socket closes, this end goes:
nothing outlives us.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from rrmove.errors import RRMoveError, Unusable
from rrmove.model import Node, SSHSettings
from rrmove.ssh.beginning import Beginning

if "--with-ssh" in sys.argv:
    # paramiko loads it to run `Match exec` of ssh_config, which `ssh -G` does here: two fifths of its 120 ms.
    sys.modules["invoke"] = None  # type: ignore[assignment]

from rrmove.ssh.embedded import ParamikoChannel, ParamikoLogin, open_channel

ORDER = 64 * 1024  # bytes of an order at most
READ = 256 * 1024  # bytes taken from the pipe at a time


def main() -> None:
    """Serve orders until nobody is there to give any."""
    control = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what we fork is not waited for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rrmove says when we go
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, ORDER, 4)
        if not data:
            return
        if os.fork() == 0:
            control.close()
            os.setsid()
            _serve(json.loads(data), descriptors)
        for fd in descriptors:
            os.close(fd)


def node_of(order: dict[str, Any]) -> Node:
    """Read the node of an order."""
    words = dict(order["node"])
    name = words.pop("name")
    for key in ("identity", "config"):
        words[key] = Path(words[key]) if words[key] is not None else None
    return Node(name=name, ssh=SSHSettings(**words))


def _serve(order: dict[str, Any], descriptors: list[int]) -> None:
    """Do what one order says, in a process of its own; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    into, out_of, reporting, *connected = descriptors
    reports = socket.socket(fileno=reporting)
    sock = socket.socket(fileno=connected[0]) if connected else None
    begun = Beginning(order["options"], sock, strict=order["strict"])
    login = ParamikoLogin(node_of(order), begun)
    threading.Thread(target=_leave_with, args=(reports, login), daemon=True).start()
    try:
        error = _joined(login, order["command"], into, out_of, reports)
    except RRMoveError as failure:
        error = failure
    except Exception as failure:  # noqa: BLE001  whatever it is, rrmove has to hear of it
        error = Unusable(f"the SSH client failed unexpectedly: {type(failure).__name__}: {failure}")
    with contextlib.suppress(OSError):
        reports.send(json.dumps({"error": spelled(error)}).encode())
    login.cut()
    os._exit(0)


def _joined(login: ParamikoLogin, command: str, into: int, out_of: int, reports: socket.socket) -> RRMoveError:
    def tell(rtt: float) -> None:
        with contextlib.suppress(OSError):
            reports.send(json.dumps({"rtt": rtt}).encode())

    channel = open_channel(login, command, tell)
    threading.Thread(target=_feed, args=(channel, into), daemon=True).start()
    while data := channel.receive():
        view = memoryview(data)
        while view:
            view = view[os.write(out_of, view) :]
    return channel.cause()


def _leave_with(reports: socket.socket, login: ParamikoLogin) -> None:
    """Go as soon as the other end of the reports has gone."""
    with contextlib.suppress(OSError):
        reports.recv(1)
    login.cut()
    os._exit(1)


def _feed(channel: ParamikoChannel, into: int) -> None:
    """Carry the command's input from its pipe, to the end of it."""
    buffer = bytearray(READ)
    view = memoryview(buffer)
    try:
        while got := os.readv(into, [buffer]):
            channel.write(view[:got])
        channel.finish()
    except OSError:
        return  # the connection is gone: the other thread says why


def spelled(error: RRMoveError) -> dict[str, str | None]:
    """Write an error down, for `rrmove.ssh.own`."""
    return {"kind": type(error).__name__, "what": error.what, "tried": error.tried, "remedy": error.remedy}


if __name__ == "__main__":
    main()
