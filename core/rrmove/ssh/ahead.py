"""Begun: a login that a thread has begun, while the rest of the program is loaded."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from rrmove.errors import RRMoveError
from rrmove.ssh import own
from rrmove.ssh.addresses import Addresses
from rrmove.ssh.boot import BOOT
from rrmove.ssh.openssh import start

if TYPE_CHECKING:
    from rrmove.model import Node
    from rrmove.ssh.channel import Channel
    from rrmove.ssh.login import Client


class Begun:
    """The first connection to a node, on which the agent is started; made by the client that `SSHSession` says."""

    def __init__(self, node: Node, client: Client, addresses: Addresses | None = None) -> None:
        self._node, self._client, self.addresses = node, client, addresses or Addresses(node)
        self._channel: Channel | None = None
        self._error: RRMoveError | None = None
        self._thread = threading.Thread(target=self._begin, name="login-ahead", daemon=True)
        self._thread.start()

    def channel(self) -> Channel:
        """Wait for the channel, which is the caller's from now on; raises what starting it did."""
        self._thread.join()
        channel, self._channel = self._channel, None
        if channel is None:
            raise self._error or AssertionError("nothing was begun, or somebody has it already")
        return channel

    def kill(self) -> None:
        """End what was begun and nobody took over; a repeat does nothing."""
        self._thread.join()
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.kill()
            channel.close()

    def _begin(self) -> None:
        try:
            if self._client == "openssh":
                self._channel = start(self._node, BOOT, addresses=self.addresses)
            else:
                self._channel = own.start(self._node, BOOT, strict=self._client == "auto", addresses=self.addresses)
        except RRMoveError as error:
            self._error = error
