"""The node's aria2c as we drive it: aria2p speaks its JSON-RPC, and the login carries it. The one place for aria2p."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aria2p

from rrmove import Fatal, IntegrityError, Transient, TransportError, Unusable

if TYPE_CHECKING:
    from rrmove import Lease

PATIENCE = 30.0  # s that one question may take, reconnections included
GID = "72726d6f76653031"  # of our only download, so that a question that is put twice does no harm
KEYS = ["status", "completedLength", "verifiedLength", "downloadSpeed", "errorCode", "errorMessage"]

# aria2's exit and error codes (aria2c(1), EXIT STATUS): what the reader does next, and in which words.
_MEANING: dict[int, tuple[type[TransportError], str]] = {
    1: (Transient, "an error that it does not name, as a refused connection"),
    2: (Transient, "the server does not answer"),
    3: (Unusable, "the server has no such file"),
    4: (Unusable, "the server has no such file, it said several times"),
    5: (Transient, "it was too slow"),
    6: (Transient, "the network failed"),
    7: (Transient, "it was ended before it was done"),
    8: (Unusable, "the server gives no ranges"),
    9: (Fatal, "the disk is full"),
    10: (Unusable, "its control file does not fit"),
    13: (Unusable, "the file was there"),
    15: (Unusable, "the part file could not be opened"),
    16: (Unusable, "the part file could not be made"),
    17: (Unusable, "the part file could not be read or written"),
    19: (Unusable, "a name could not be resolved"),
    22: (Transient, "the server's answer was bad"),
    23: (Unusable, "the server redirects too often"),
    24: (Unusable, "the server wants other credentials"),
    28: (Unusable, "it refuses an option"),
    29: (Transient, "the server is overloaded"),
}
_CHECKSUM = 32  # with an empty message


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
        if code == _CHECKSUM:
            return IntegrityError(
                "what aria2c fetched has another SHA-256 than the file", node=self._node, tried=self._tried
            )
        kind, meaning = _MEANING.get(code, (Transient, "an error of its own"))
        said = f": {' '.join(message.split())[:200]}" if message.strip() else ""
        return kind(f"aria2c failed with code {code}, {meaning}{said}", node=self._node, tried=self._tried)
