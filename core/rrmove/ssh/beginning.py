"""Beginning: what of a login is under way before paramiko is loaded: ssh_config asked, the connection on its way."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rrmove.ssh.ability import only_ssh_can
from rrmove.ssh.config import effective_sync, parse_ssh_g
from rrmove.ssh.failures import NotOurs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rrmove.model import Node
    from rrmove.ssh.addresses import Addresses, Dialed

PATIENCE = 10.0  # s for `ssh -G`, which answers in 8 ms


@dataclass(slots=True)
class Beginning:
    """A node's options, lower-case keyword to values (None: there is no `ssh` to ask), and a socket that connects.

    `strict` says that `ssh` takes over where this login comes to nothing; `dialed` that the socket
    has won a race between several addresses. A context manager: leaving it closes the socket here.
    """

    options: Mapping[str, Sequence[str]] | None = None
    sock: socket.socket | None = None
    strict: bool = False
    dialed: Dialed | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.sock is not None:
            self.sock.close()


def begin(node: Node, *, strict: bool, addresses: Addresses | None = None) -> Beginning:
    """Ask `ssh -G`, and start to connect where the way is direct. Blocks for some 20 ms and the name's resolution.

    Where the node has several addresses, it blocks until one of them has answered: raises NoLogin
    where none does. `strict` says that `ssh` would serve else: raises NotOurs where it alone can.
    Raises UsageError where ssh_config is broken.
    """
    default = _Defaults() if strict else None
    config = effective_sync(node)
    if config is None and addresses is not None and addresses.several:
        from rrmove.ssh.embedded import config_by_paramiko

        config = config_by_paramiko(node)
    if config is None:
        return Beginning()
    unable = only_ssh_can(config.options, default.options()) if default is not None else None
    if addresses is not None:
        addresses.learn(config)
    if unable is not None:
        raise NotOurs(f"ssh_config asks for {unable}, which only ssh can do", node=node.name)
    if config.proxyjump or config.proxycommand:
        return Beginning(config.options, strict=strict)
    sock = None
    if addresses is None or not addresses.several:
        sock, many = _connecting(config.hostname, config.port)
        if many and addresses is not None:
            addresses.widen()
    course = addresses.course() if addresses is not None and sock is None else None
    if addresses is None or course is None:
        return Beginning(config.options, sock or _connecting(config.hostname, config.port)[0], strict)
    options = {**config.options, "stricthostkeychecking": ("yes",)} if course.strict else config.options
    sock, dialed = addresses.dial(course)
    return Beginning(options, sock, strict, dialed)


class _Defaults:
    """What `ssh` would do for a host that no file tells it anything of; asked beside the other question."""

    def __init__(self) -> None:
        argv = ["ssh", "-G", "-T", "-F", "none", "--", "localhost"]
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )

    def options(self) -> Mapping[str, tuple[str, ...]]:
        if self._process is None:
            return {}
        end = threading.Timer(PATIENCE, self._process.kill)
        end.start()
        try:
            answer = self._process.communicate()[0]
        finally:
            end.cancel()
        return parse_ssh_g(answer.decode(errors="replace")).options


def _connecting(host: str, port: int) -> tuple[socket.socket | None, bool]:
    """Start a connection and do not wait for it; none where a name has several addresses, and whether it has."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return None, False  # whoever waits for the connection asks again, and says why it is none
    if len(found) != 1:
        return None, len(found) > 1
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    try:
        sock.connect(address)
    except BlockingIOError:
        pass  # on its way
    except OSError:
        sock.close()
        return None, False
    return sock, False
