"""Serving one local file from this machine: the one-shot server in threads of this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from rrmove.errors import Fatal, Unusable
from rrmove.oneshot import server as oneshot
from rrmove.oneshot.certificate import make_certificate
from rrmove.oneshot.endpoint import Endpoint, random_path, random_token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from rrmove.transport import Limiter

LEAST_SLICE, SLICES = 4096, 32  # bytes; a second under a rate limit, so that several connections each move often
LOOK = 0.25  # s between two looks whether a thread that waits for the rate limit should give up


class Serving:
    """A server at work.

    `asked` is set once somebody with the token has come; `ended` once the client said that it has done, or that it
    could not: `trouble`.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.asked, self.ended = asyncio.Event(), asyncio.Event()
        self.trouble: str | None = None


@asynccontextmanager
async def serve_once(  # noqa: PLR0913  all by name, none needed
    path: str | Path,
    *,
    host: str = "",
    port: int = 0,
    tls: bool = True,
    limiter: Limiter | None = None,
    sent: Callable[[int], None] | None = None,
    kept: Callable[[int, int], None] | None = None,
) -> AsyncIterator[Serving]:
    """Serve one local file over HTTP, to whoever has the token, until the block is left; GET with Range, and HEAD.

    Listens on `host` ("": every address of this machine) and `port` (0: any), at a random path; with `tls` under a
    certificate made for this, see `Serving.endpoint`. `limiter` is asked before bytes leave. In the event loop,
    `sent(count)` is told of bytes that have left, and `kept(start, stop)` of ranges whose client came back for more,
    or ended well: it has dealt with them. Raises Fatal where the file cannot be read, Unusable where the port is taken.
    Leaving the block closes every connection at once.
    """
    loop = asyncio.get_running_loop()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Fatal(f"cannot read {str(path)!r}: {error.strerror}") from error
    try:
        made = await asyncio.to_thread(make_certificate) if tls else None
        context = oneshot.context_of(made.certificate, made.key) if made is not None else None
        try:
            listener = oneshot.listening(host, port)
        except OSError as error:
            raise Unusable(f"cannot listen on port {port} of this machine: {error.strerror}") from error
        serving = Serving(
            Endpoint(
                port=listener.getsockname()[1],
                path=random_path(),
                token=random_token(),
                fingerprint=made.fingerprint if made else None,
                public_key=made.public_key if made else None,
            )
        )

        def tell(what: Callable[..., None] | None, *words: int) -> None:
            if what is not None:
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: nobody wants to know
                    loop.call_soon_threadsafe(what, *words)

        server = oneshot.OneShot(
            fd,
            serving.endpoint.path,
            serving.endpoint.token,
            listener,
            context=context,
            moved=lambda start, stop: tell(sent, stop - start),
            kept=lambda start, stop: tell(kept, start, stop),
        )

        server.asked = lambda: tell(serving.asked.set)
        if limiter is not None and limiter.rate is not None:
            server.pay = _payer(limiter, loop, server)
            server.slice = _slice(limiter)

        def end() -> None:
            serving.trouble = server.trouble
            serving.ended.set()

        def work() -> None:
            try:
                server.serve()
            finally:
                tell(end)

        thread = threading.Thread(target=work, name="serve-once", daemon=True)
        thread.start()
        try:
            yield serving
        finally:
            server.stop()
            await asyncio.shield(asyncio.to_thread(server.join))
    finally:
        os.close(fd)


def _slice(limiter: Limiter) -> int:
    """Give how much to send at once, so that several connections each move often."""
    return oneshot.SLICE if limiter.rate is None else int(min(oneshot.SLICE, max(LEAST_SLICE, limiter.rate / SLICES)))


def _payer(limiter: Limiter, loop: asyncio.AbstractEventLoop, server: oneshot.OneShot) -> Callable[[int], None]:
    """Make what a server's thread calls to wait until the move's limiter lets bytes pass."""

    def pay(count: int) -> None:
        server.slice = _slice(limiter)  # of the next: others may have come, and left less
        paid = asyncio.run_coroutine_threadsafe(limiter.take(count), loop)
        while not server.done.is_set():
            with contextlib.suppress(TimeoutError):
                paid.result(LOOK)
                return
        paid.cancel()
        raise OSError("the server was stopped")

    return pay


__all__ = ["Serving", "serve_once"]
