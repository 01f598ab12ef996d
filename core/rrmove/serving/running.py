"""A server's life: roots, secrets and sockets are opened, requests answered, and all of it ended in peace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from rrmove.errors import UsageError
from rrmove.serving import listener, private
from rrmove.serving.application import Application
from rrmove.serving.certificate import Identity, identity
from rrmove.serving.digests import Digests
from rrmove.serving.log import Log
from rrmove.serving.metrics import Metrics
from rrmove.serving.roots import Root, RootSpec

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

GRACE = 10.0  # s that requests have to end after a signal; what an upload has brought so far is kept anyway
DISK_THREADS = 16  # opening, writing: short, and mostly waiting for the disk
HASH_THREADS, DIGEST_THREADS = 4, 2  # reading back uploads, and whole files; neither waits for the other
EVERYWHERE, LOOPBACK = ("0.0.0.0", "::"), ("127.0.0.1", "::1")  # noqa: S104 - TLS and the token guard it


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve. `patience` is in seconds, `most_body` in bytes; None stands for the usual place."""

    roots: tuple[RootSpec, ...]
    addresses: tuple[str, ...] = ()
    port: int = 8780
    plain: bool = False
    plain_anywhere: bool = False
    token_file: Path | None = None
    certificate: Path | None = None
    connections: int = 256
    most_body: int = 64 << 20
    patience: float = 20.0


def serve(settings: Settings, announce: Callable[[Mapping[str, object]], None]) -> None:
    """Serve until SIGTERM or SIGINT; then requests under way have 10 s to end. A second signal ends at once.

    `announce` gets what the state file says when connections are taken. Raises UsageError and Fatal.
    """
    roots = _roots(settings.roots)
    addresses = settings.addresses or (LOOPBACK if settings.plain else EVERYWHERE)
    if settings.plain and not settings.plain_anywhere:
        listener.check_plain(addresses)
    folder = private.state_directory()
    token_file = (settings.token_file or folder / "serve.token").expanduser().absolute()
    certificate = (settings.certificate or folder / "serve.pem").expanduser().absolute()
    _outside(roots, token_file, certificate)
    token = private.Token.of(token_file)
    proof = None if settings.plain else identity(certificate)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(each) for each in listener.bind(addresses, settings.port)]
        state = private.StateFile(folder, _state(sockets, token_file, proof, roots))
        log = Log()
        stack.callback(log.close)
        logging.basicConfig(handlers=[log.of_libraries()], level=logging.WARNING)
        _make_room(settings.connections)
        with asyncio.Runner(loop_factory=_loop_factory(proof)) as runner:
            server = _Server(
                settings=settings, roots=roots, token=token, proof=proof, sockets=sockets, state=state, log=log
            )
            runner.run(server.run(announce))


def _make_room(connections: int) -> None:
    """Have enough descriptors: a connection takes four at most, where the limits of the system allow it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < (wanted := 4 * connections + 256):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _roots(specs: Sequence[RootSpec]) -> list[Root]:
    if len({spec.name for spec in specs}) < len(specs):
        raise UsageError("two roots have the same name", remedy="Give each --root a name of its own")
    return [Root.open(spec) for spec in specs]


def _outside(roots: Sequence[Root], *paths: Path) -> None:
    """Make sure that no root serves the secrets. Raises UsageError."""
    for path in paths:
        for root in roots:
            if path.resolve().is_relative_to(root.path):
                raise UsageError(
                    f"{str(path)!r} lies in the root {root.name!r}: whoever may read there could read the secret",
                    remedy="Serve a directory below, or move it: --token-file, --certificate, $XDG_STATE_HOME",
                )


def _state(
    sockets: Sequence[socket.socket], token_file: Path, proof: Identity | None, roots: Sequence[Root]
) -> dict[str, object]:
    return {
        "port": sockets[0].getsockname()[1],
        "scheme": "https" if proof else "http",
        "addresses": [each.getsockname()[0] for each in sockets],
        "pid": os.getpid(),
        "version": _version(),
        "token_file": str(token_file),
        "fingerprint": proof.fingerprint if proof else None,
        "pin": proof.pin if proof else None,
        "roots": [{"name": root.name, "path": root.path, "access": root.access} for root in roots],
    }


def _version() -> str:
    try:
        return version("rrmove")
    except PackageNotFoundError:
        return "0"


def _loop_factory(proof: Identity | None) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """TLS is two to four times as fast on uvloop (measured); sendfile is asyncio's only."""
    if proof is None:
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """Everything that was opened, and its life in an event loop."""

    settings: Settings
    roots: Sequence[Root]
    token: private.Token
    proof: Identity | None
    sockets: Sequence[socket.socket]
    state: private.StateFile
    log: Log

    async def run(self, announce: Callable[[Mapping[str, object]], None]) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` means it
                loop.add_signal_handler(number, self._signalled, stop)
        loop.set_exception_handler(self._unexpected)
        loop.set_default_executor(ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk"))
        verifying = ThreadPoolExecutor(HASH_THREADS, thread_name_prefix="verify")
        hashing = ThreadPoolExecutor(DIGEST_THREADS, thread_name_prefix="digest")
        connections = self._connections(verifying, hashing)
        context = self.proof.context if self.proof else None
        accepting = [asyncio.create_task(connections.accept(each, context)) for each in self.sockets]
        self.state.write()
        try:
            announce(self.state.fields)
            self.log.say("serving", **self.state.fields)
            ended, _ = await asyncio.wait(
                [asyncio.ensure_future(stop.wait()), *accepting], return_when=asyncio.FIRST_COMPLETED
            )
            for each in ended:
                each.result()  # a listener that failed ends the server, rather than leave it deaf
        finally:
            self.log.say("stopping")
            for task in accepting:
                task.cancel()
            await asyncio.wait(accepting)
            for sock in self.sockets:
                sock.close()
            self.state.remove()
            await connections.end(GRACE)
            verifying.shutdown(wait=False, cancel_futures=True)
            hashing.shutdown(wait=False, cancel_futures=True)
            self.log.say("stopped")

    def _connections(self, verifying: ThreadPoolExecutor, hashing: ThreadPoolExecutor) -> listener.Connections:
        settings, metrics = self.settings, Metrics()
        application = Application(
            roots=self.roots,
            token=self.token,
            digests=Digests(hashing),
            pool=verifying,
            log=self.log,
            metrics=metrics,
            version=_version(),
            most_body=settings.most_body,
            patience=settings.patience,
        )
        return listener.Connections(
            application, most=settings.connections, patience=settings.patience, log=self.log, metrics=metrics
        )

    def _unexpected(self, _: asyncio.AbstractEventLoop, context: Mapping[str, object]) -> None:
        self.log.say("unexpected", error=context.get("message"), trace=repr(context.get("exception")))

    def _signalled(self, stop: asyncio.Event) -> None:
        if stop.is_set():  # the second one: part files can be resumed from whatever they have
            self.log.close()
            os._exit(1)
        stop.set()
