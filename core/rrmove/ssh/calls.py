"""CallLane: calls over one channel, from asyncio, with the bytes moved by threads, whoever answers them."""

from __future__ import annotations

import abc
import asyncio
import itertools
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rrmove.errors import Fatal, RRMoveError, Transient, Unusable
from rrmove.session import Body, FilePart, Reply
from rrmove.ssh.armour import armoured
from rrmove.ssh.failures import NoLogin, NoPython, NotClean, explain_operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from rrmove.model import Node
    from rrmove.ssh.channel import Channel, Open

READY = b"\0RRMOVE-READY\n"
EVERY_BYTE = bytes(range(256))  # what both sides begin with
BYTES = b"\nRRMOVE-BYTES "
NOT_CLEAN = b"\nRRMOVE-NOT-CLEAN"
NO_PYTHON = b"\nRRMOVE-NO-PYTHON"
NOISE = 64 * 1024  # what a login shell's start-up files may print before the agent speaks, bytes
LOGIN_PATIENCE = 30.0  # s; a cold login takes 12 round trips and a slow .bashrc some seconds more
PATIENCE = 6.0  # s without a word while calls are open; both agent and floor send a beat every second
PIECE = 64 * 1024  # bytes of a body read at a time, so that a long one on a slow link counts as heard
SMALL = 64 * 1024  # bytes up to which a body is copied behind its header to save a system call


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it was read: the number of its call, 0 for a beat, and a Reply or an error's fields."""

    number: int
    reply: Reply = field(default_factory=Reply)
    error: dict[str, object] | None = None


class CallLane(abc.ABC):
    """The part of a lane that does not depend on who answers; see `rrmove.session.Lane` for the contract.

    A thread connects and writes, another reads; everything else happens in the event loop in
    which the lane was made. The connection is begun at once, calls queue up until it is there.
    With `text` all that goes over the wire is text, for channels that are not 8-bit clean.
    """

    def __init__(
        self, open_channel: Open, node: Node, *, lost: Callable[[RRMoveError], None] | None = None, text: bool = False
    ) -> None:
        self._node, self._open_channel, self._lost = node, armoured(open_channel) if text else open_channel, lost
        self.text = text
        self._loop = asyncio.get_running_loop()
        self._begun = self._heard = self._asked = time.monotonic()
        self._carried = 0
        self._error: RRMoveError | None = None
        self._numbers = itertools.count(1)
        self._open_calls: dict[int, tuple[asyncio.Future[Reply], str, str]] = {}
        self._outbox: queue.SimpleQueue[tuple[bytes, Body] | None] = queue.SimpleQueue()
        self._channel: Channel | None = None
        self._guard = threading.Lock()
        self._up: asyncio.Future[None] = self._loop.create_future()
        self._up.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._threads = [threading.Thread(target=self._write, name=f"lane-write-{node.name}", daemon=True)]
        self._threads[0].start()
        self._watch = self._loop.call_later(1.0, self._look)

    @property
    def age(self) -> float:
        """Seconds since the connection was begun."""
        return time.monotonic() - self._begun

    @property
    def carried(self) -> int:
        """Bytes sent over it so far, the agent's own text included."""
        return self._carried

    @property
    def quiet(self) -> float:
        """Seconds since the last byte was heard from the node."""
        return time.monotonic() - self._heard

    @property
    def handshake(self) -> float | None:
        """Seconds that TCP's handshake took, one round trip; None where that is not known, or not yet."""
        return getattr(self._channel, "rtt", None)

    @property
    def alive(self) -> bool:
        """Whether calls can still be made."""
        return self._error is None

    @property
    def up(self) -> bool:
        """Whether the agent has answered."""
        return self._up.done() and self.alive

    async def ready(self) -> None:
        """Wait until the agent has answered; raises why it never will."""
        await asyncio.shield(self._up)

    @property
    def node(self) -> Node:
        """The node at the far end."""
        return self._node

    def give_up(self, error: RRMoveError) -> None:
        """End the connection, for a reason that open calls raise; `close()` has to follow."""
        self._die(error)

    async def close(self) -> None:
        """End the connection and wait until no thread touches it or its files any more."""
        self._die(Transient("the connection was closed by us", node=self._node.name))
        await asyncio.shield(self._loop.run_in_executor(None, self._join))

    # What depends on who answers

    @abc.abstractmethod
    def _start(self) -> tuple[str, bytes]:
        """Give the command to run on the node, and what to send it first."""

    @abc.abstractmethod
    def _hear(self, channel: Channel) -> Answer | None:
        """Read one answer, in the reading thread; None at the end of the stream."""

    async def _exchange(self, op: str, path: str, encode: Callable[[int], bytes], body: Body = b"") -> Reply:
        """Send one request, whose header `encode` makes for its number, and wait for the answer."""
        if self._error is not None:
            raise self._error
        number = next(self._numbers)
        future: asyncio.Future[Reply] = self._loop.create_future()
        head = encode(number)
        if not self._open_calls:
            self._asked = time.monotonic()
        self._open_calls[number] = (future, op, path)
        self._outbox.put((head, body))
        try:
            return await future
        finally:
            self._open_calls.pop(number, None)

    # In the event loop

    def _die(self, error: RRMoveError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._watch.cancel()
        self._outbox.put(None)
        with self._guard:
            if self._channel is not None:
                self._channel.kill()
        if not self._up.done():
            self._up.set_exception(error)
        for future, _, _ in list(self._open_calls.values()):
            if not future.done():
                future.set_exception(error)
        if self._lost is not None:
            self._lost(error)

    def _look(self) -> None:
        """Once a second: a lane that owes answers and says nothing is dead, whatever TCP believes."""
        self._watch = self._loop.call_later(1.0, self._look)
        if not self._up.done():
            if self.age > LOGIN_PATIENCE:
                self._die(NoLogin(f"no login within {LOGIN_PATIENCE:.0f} s", node=self._node.name))
        elif self._open_calls:
            # An agent that is owed nothing says nothing: silence counts from when it was asked.
            silent = time.monotonic() - max(self._heard, self._asked)
            if silent > PATIENCE:
                self._die(Transient(f"the connection fell silent for {silent:.0f} s", node=self._node.name))

    def _is_up(self) -> None:
        if not self._up.done():
            self._up.set_result(None)

    def _settle(self, answer: Answer) -> None:
        entry = self._open_calls.get(answer.number)
        if entry is None or entry[0].done():
            return  # somebody who no longer waits
        future, op, path = entry
        if answer.error is not None:
            future.set_exception(explain_operation(op, answer.error, node=self._node.name, path=path))
        else:
            future.set_result(answer.reply)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()
        with self._guard:  # several may close a lane at once; its channel is closed once
            channel, self._channel = self._channel, None
        close = getattr(channel, "close", None)
        if close is not None:
            close()

    # In the threads

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:  # the loop has been closed under us: nobody listens any more
            return

    def _write(self) -> None:
        command, text = self._start()
        try:
            channel = self._open_channel(command)
        except RRMoveError as error:
            self._tell(self._die, error)
            return
        except Exception as error:  # noqa: BLE001  whatever it is, callers must not wait for it in vain
            what = f"the connection could not be opened ({type(error).__name__}: {error})"
            self._tell(self._die, Unusable(what, node=self._node.name))
            return
        with self._guard:
            self._channel = channel
            if self._error is not None:
                channel.kill()
                return
        reader = threading.Thread(target=self._read, args=(channel,), name="lane-read", daemon=True)
        self._threads.append(reader)
        reader.start()
        try:
            channel.write(text + EVERY_BYTE)
            self._carried += len(text) + len(EVERY_BYTE)
            while (item := self._outbox.get()) is not None:
                head, body = item
                if isinstance(body, FilePart):
                    channel.write(head)
                    channel.write_file(body.fd, body.offset, body.length)
                    self._carried += len(head) + body.length
                else:
                    channel.write(head + body if len(body) < SMALL else head)
                    if len(body) >= SMALL:
                        channel.write(body)
                    self._carried += len(head) + len(body)
        except RRMoveError as error:
            self._tell(self._die, error)
        except (OSError, ValueError):
            return  # the reader finds the end of the stream and says why

    def _read(self, channel: Channel) -> None:
        try:
            self._await_ready(channel)
            self._tell(self._is_up)
            arrived = getattr(channel, "arrived", None)  # a channel that has several ways wants to know
            if arrived is not None:
                arrived()
            while (answer := self._hear(channel)) is not None:
                self._heard = time.monotonic()
                if answer.number:
                    self._tell(self._settle, answer)
        except RRMoveError as error:
            self._tell(self._die, error)
            return
        except (EOFError, OSError, ValueError):
            pass  # cut in the middle of an answer, or killed by us
        self._tell(self._die, self._loss(channel))

    def _loss(self, channel: Channel) -> RRMoveError:
        """Say how the connection ended. One that was up is lost, whatever its last words remind of."""
        cause = channel.cause()
        if self._up.done() and (isinstance(cause, NoLogin) or not isinstance(cause, Transient)):
            return Transient("the connection was lost", node=self._node.name, tried=cause.tried)
        return cause

    def _take(self, channel: Channel, length: int) -> bytes:
        """Read a body; each piece counts as heard. Raises EOFError where the stream ends in it."""
        pieces = []
        while length:
            piece = channel.read(min(length, PIECE))
            if not piece:
                raise EOFError("the stream ended in the middle of an answer")
            self._heard = time.monotonic()
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    def _mangled(self) -> Transient:
        return Transient("the node's answers are mangled", node=self._node.name)

    def _unclean(self) -> RRMoveError:
        if not self.text:
            return NotClean("the connection alters bytes", node=self._node.name)
        return Fatal(
            "the connection alters bytes, and not even text gets through",
            node=self._node.name,
            remedy="Look for what is between, such as a forced command. A node without python3 needs base64",
        )

    def _await_ready(self, channel: Channel) -> None:
        heard = b""
        while not heard.endswith(READY):
            byte = channel.read(1)
            if not byte:
                raise channel.cause()
            self._heard = time.monotonic()
            heard += byte
            if heard.endswith(NO_PYTHON):
                raise NoPython("the node has no python3 >= 3.6", node=self._node.name)
            if heard.endswith(NOT_CLEAN):
                raise self._unclean()
            if heard.endswith(BYTES):
                if channel.read(len(EVERY_BYTE)) != EVERY_BYTE:
                    raise self._unclean()
                heard = b""
            if len(heard) > NOISE:
                raise Transient(
                    f"something else than the agent answers: {heard[:80]!r}",
                    node=self._node.name,
                    remedy="Make the node's .bashrc print nothing when it is not interactive",
                )
