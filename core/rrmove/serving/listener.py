"""Connections: who may listen where, how many there are at once, and how long a silent one may stay."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from rrmove.errors import Fatal, UsageError
from rrmove.nodefile import address_kind

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from rrmove.serving.application import Application
    from rrmove.serving.log import Log
    from rrmove.serving.metrics import Metrics

BACKLOG = 128
LINGER = 2.0  # s for the rest of a refused body, so that its client sees the refusal, and for the end of TLS
SCARCE = 0.2  # s to wait where the process has run out of descriptors
LINE, FIELD, FIELDS = 16384, 8192, 64  # bytes of a request line and of a header, and headers: a path has 4096 bytes


def check_plain(addresses: Sequence[str]) -> None:
    """Let plain HTTP through on loopback and Tailscale only. Raises UsageError."""
    for address in addresses:
        try:
            inner = ipaddress.ip_address(address.partition("%")[0]).is_loopback
        except ValueError:
            inner = False
        if not inner and address_kind(address) != "tailscale":
            raise UsageError(
                f"plain HTTP is not offered on {address}: the token and the data could be read on the way",
                remedy="Leave --plain out for TLS, or listen on 127.0.0.1 or a Tailscale address; "
                "where the network is trusted: --plain-anywhere",
            )


def bind(addresses: Sequence[str], port: int) -> list[socket.socket]:
    """Open listening sockets; port 0 takes a free one, the same for all. Raises UsageError or Fatal."""
    found: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        for address in addresses:
            try:
                (family, kind, protocol, _, where), *_ = socket.getaddrinfo(
                    address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
                )
            except socket.gaierror as error:
                raise UsageError(
                    f"{address!r} is no address", remedy="Name one of this machine's: 0.0.0.0, ::1"
                ) from error
            try:
                listener = stack.enter_context(socket.socket(family, kind, protocol))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(where)
                listener.listen(BACKLOG)
            except OSError as error:
                if address == "::" and len(addresses) > 1 and error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                    continue  # a machine without IPv6, and nobody asked for it
                raise _cannot_listen(address, port, error) from error
            listener.setblocking(False)
            port = listener.getsockname()[1]
            found.append(listener)
        stack.pop_all()
    return found


def _cannot_listen(address: str, port: int, error: OSError) -> Exception:
    what = f"cannot listen on {address} port {port}: {error.strerror}"
    if error.errno == errno.EADDRINUSE:
        return Fatal(
            what, remedy=f"Another server runs there (`ss -ltnp sport = :{port}`): end it, or name another --port"
        )
    if error.errno == errno.EACCES:
        return Fatal(what, remedy="Ports below 1024 are root's: name another --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(what, remedy="This machine has no such address: see `ip address`")
    return Fatal(what, remedy="Name another --listen or --port")


class Connection(web.RequestHandler):
    """One connection: counted until it is closed; what is no HTTP is answered in our own words."""

    closed: Callable[[], None] | None = None
    busy = False
    garbled: Callable[[int, str], web.Response]

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell who counts."""
        super().connection_lost(exc)
        if self.closed is not None:
            self.closed()
            self.closed = None

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send what is left of a response."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.busy = False

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what could not be read as HTTP."""
        if isinstance(exc, ConnectionError) or (request.writer is not None and request.writer.output_size > 0):
            raise ConnectionError("nobody waits for an answer, or it had begun") from exc
        response = self.garbled(status, message or type(exc).__name__)
        response.force_close()
        return response


class Connections(web.Server):
    """All connections of the server: at most `most` at once; further ones wait in the kernel's queue."""

    def __init__(
        self,
        application: Application,
        *,
        most: int,
        patience: float,
        log: Log,
        metrics: Metrics,
    ) -> None:
        super().__init__(
            self._answer,
            access_log=None,
            auto_decompress=False,
            # Counted from the connection's beginning, or the last answer, to the end of the next headers.
            keepalive_timeout=patience,
            lingering_time=LINGER,
            read_bufsize=1 << 18,
            max_line_size=LINE,
            max_field_size=FIELD,
            max_headers=FIELDS,
        )
        self._application, self._patience, self._log, self._metrics = application, patience, log, metrics
        self._stopping = False
        self._slots = asyncio.Semaphore(most)
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self) -> Connection:
        """Make the protocol of a new connection."""
        connection = Connection(self, loop=self._loop, **self._kwargs)
        connection.garbled = self._application.garbled
        return connection

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast("Connection", request.protocol)
        connection.busy = True  # until the response was sent: see finish_response
        response = await self._application(request)
        if self._stopping:
            response.force_close()
        return response

    async def end(self, grace: float) -> None:
        """Close what is idle, let what is under way come to its end, and close the rest after `grace` seconds.

        aiohttp's own way takes no more of a body that is on its way.
        """
        self._stopping = True
        end = asyncio.get_running_loop().time() + grace
        while self.connections and asyncio.get_running_loop().time() < end:
            for connection in self.connections:
                if not cast("Connection", connection).busy:
                    connection.force_close()
            await asyncio.sleep(0.05)
        await self.shutdown(1.0)

    async def accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        """Take connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._log.say("accept_failed", error=str(error))
                await asyncio.sleep(SCARCE)
                continue
            try:
                await self._slots.acquire()
            except asyncio.CancelledError:
                accepted.close()
                raise
            self._metrics.connections.inc()
            task = asyncio.create_task(self._connect(accepted, context))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, accepted: socket.socket, context: ssl.SSLContext | None) -> None:
        loop, connection = asyncio.get_running_loop(), self()
        more: dict[str, Any] = {}
        if context:
            more = {"ssl_handshake_timeout": self._patience, "ssl_shutdown_timeout": LINGER}
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(lambda: connection, accepted, ssl=context, **more)
        except (OSError, EOFError) as error:  # ssl.SSLError and time-outs are OSErrors
            accepted.close()
            self._released()
            self._log.say("handshake_failed", error=str(error) or type(error).__name__)
        except BaseException:
            self._released()
            raise
        else:
            if connection.transport is None:  # it is over already
                self._released()
            else:
                connection.closed = self._released

    def _released(self) -> None:
        self._slots.release()
        self._metrics.connections.dec()
