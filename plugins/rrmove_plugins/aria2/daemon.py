"""The node's aria2c as we drive it: aria2p speaks its JSON-RPC, and the login carries it. The one place for aria2p."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aria2p

from rrmove import Transient, Unusable
from rrmove.aria2c.codes import explained

if TYPE_CHECKING:
    from rrmove import IntegrityError, Lease, TransportError

PATIENCE = 30.0  # s that one question may take, reconnections included
GID = "72726d6f76653031"  # of our only download, so that a question that is put twice does no harm
KEYS = ["status", "completedLength", "verifiedLength", "downloadSpeed", "errorCode", "errorMessage"]


class Client(aria2p.Client):
    """aria2p's client, whose questions go through a lease and not to a port of ours."""

    def __init__(self, lease: Lease, secret: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(secret=secret)
        self._lease, self._loop = lease, loop

    def post(self, payload: str) -> dict[str, Any]:
        """Put one question, in a thread; its answer is aria2c's."""
        asked = asyncio.run_coroutine_threadsafe(self._lease.ask(payload.encode("utf-8")), self._loop)
        answer: dict[str, Any] = json.loads(asked.result(PATIENCE))
        return answer


class Daemon:
    """One aria2c with one download."""

    def __init__(self, lease: Lease, secret: str, node: str, tried: str) -> None:
        self._client, self._node, self._tried = Client(lease, secret, asyncio.get_running_loop()), node, tried

    async def add(self, uris: list[str], options: dict[str, str]) -> None:
        """Begin the download of one file from all of these at once. A repeat does no harm."""
        try:
            await self._call(self._client.add_uri, uris, {**options, "gid": GID})
        except Unusable as error:
            if "is not unique" not in error.what and "already" not in error.what:
                raise

    async def look(self) -> dict[str, Any]:
        """Ask how far it is; `KEYS` says what for."""
        status: dict[str, Any] = await self._call(self._client.tell_status, GID, KEYS)
        return status

    async def limit(self, rate: str) -> None:
        """Have it take so many bytes a second from now on, "0" for as many as it can. A repeat does no harm."""
        await self._call(self._client.change_global_option, {"max-overall-download-limit": rate})

    async def _call(self, what: Any, *words: object) -> Any:
        try:
            return await asyncio.to_thread(what, *words)
        except aria2p.ClientException as error:
            raise Unusable(f"aria2c on the node failed: {error}", node=self._node) from error
        except (ValueError, TimeoutError) as error:
            raise Transient(f"aria2c on the node does not answer: {error}", node=self._node) from error

    def explained(self, code: int, message: str) -> TransportError | IntegrityError:
        """Give the error that aria2's code stands for."""
        return explained(code, message, node=self._node, tried=self._tried)
