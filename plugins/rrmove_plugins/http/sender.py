"""The sender: missing spans, several lines at once, acknowledged one by one, wrong ones again."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import threading
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rrmove import RTT, ConnectionLost, Fatal, IntegrityError, Range, Transient, TransportError, Unusable
from rrmove_plugins.http.line import Line, Stalled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rrmove import Job
    from rrmove_plugins.http.line import Door
    from rrmove_plugins.http.readback import ReadBack

# Measured on two cores: on a short link two lines are as fast as four, with TLS a fifth faster. On a long one each is
# bound by its window: 6 MiB / 15 ms is 400 MB/s; and four lose less to a lost packet than two.
SHORT, FEW, SOME, MOST_LINES = 0.005, 2, 4, 8
PER_LINE = 0.015  # s of round trip that one more line pays for
BEHIND = 3  # spans sent on a line before the first answer has to be there
FIRST_SPAN, LEAST_SPAN, MOST_SPAN = 256 << 10, 64 << 10, 8 << 20  # bytes
SPAN_SECONDS = 0.25  # s between two acknowledgements of a line: progress that a user sees, little to lose
CONNECT_LEAST, CONNECT_MOST, CONNECT_ROUNDS = 0.3, 1.0, 4  # s, s, round trips: silence longer than that is a filter
WRONG = 4  # times that a span may arrive altered
GOODBYE = 1.0  # s that the end of a server may take to be asked for
ENOUGH = {200, 201, 204}


def changed(job: Job) -> Fatal:
    """Say that what was sent is not what was hashed, and why."""
    return Fatal(
        f"{str(job.request.source.path)!r} was changed while it was sent; nothing was committed",
        node=job.request.node.name,
        remedy="Run the same command again when nobody writes to the file",
    )


def goodbye(door: Door, line: Line | None = None) -> None:
    """Send a receiver home, over a line that is there or one more. Blocks, for a second or two at most."""
    with contextlib.suppress(OSError, ValueError, TransportError):
        line = line or Line(door, GOODBYE)
        try:
            line.delete()
        finally:
            line.close()


class Sender:
    """One attempt at a door. `run()` returns once every span was acknowledged.

    Raises Unusable where the door cannot be used: `reached` tells whether it ever could; Transient where it could
    until something had been brought.
    """

    def __init__(self, job: Job, fd: int, door: Door, missing: Sequence[Range], back: ReadBack | None = None) -> None:
        self._job, self._fd, self._door, self._back = job, fd, door, back
        self._loop = asyncio.get_running_loop()
        rtt = job.facts.get(RTT) or 0.05
        self._timeout = min(CONNECT_MOST, max(CONNECT_LEAST, CONNECT_ROUNDS * rtt))
        manifest = job.manifest
        chunks = [manifest.chunk(index) for index in manifest.chunks_of(missing)]
        self._lacking = {chunk.start // manifest.grain: chunk.length for chunk in chunks}
        self._count = max(1, min(MOST_LINES, len(chunks), max(FEW if rtt < SHORT else SOME, round(rtt / PER_LINE))))
        self._todo = deque(chunks)
        self._flying = 0
        self._wrong: Counter[int] = Counter()
        self._faults = 0  # in a row, without anything acknowledged
        self._error: TransportError | IntegrityError | None = None
        self._stopped = False
        self._lines: set[Line] = set()
        self._spare: Line | None = None
        self._change = threading.Condition()
        self._gained = False
        self.reached = False

    async def run(self) -> None:
        """Send everything that is missing."""
        with ThreadPoolExecutor(self._count, thread_name_prefix="http-line") as threads:
            work = [self._loop.run_in_executor(threads, self._work) for _ in range(self._count)]
            reading = asyncio.create_task(self._read_back())
            try:
                await asyncio.wait(work)
                for each in work:
                    each.result()
                if self._back is not None and self._error is None:
                    await asyncio.sleep(0)  # what the threads have told is heard
                    self._back.end()
                    await reading
                if self._error is not None:
                    raise self._error
            finally:
                reading.cancel()
                self._stop()
                await asyncio.shield(self._leave(work))

    async def _read_back(self) -> None:
        """Have verified what has arrived; nothing more is sent where too much of it is wrong."""
        if self._back is None:
            return
        try:
            await self._back.run()
        except (TransportError, IntegrityError) as error:
            self._fail(error)
        else:
            self._stop()

    async def _leave(self, work: list[asyncio.Future[None]]) -> None:
        """Wait for the threads, and send the server home where it is ours; it would go by itself soon."""
        await asyncio.wait(work)
        if self._door.once and (self.reached or self._error is None):  # without either, it was cancelled early
            await asyncio.to_thread(goodbye, self._door, self._spare)

    # In the threads

    def _work(self) -> None:
        while (span := self._take(FIRST_SPAN, wait=True)) is not None:
            try:
                line = self._connected()
            except (OSError, ValueError) as error:
                self._put_back(span)
                said = "it does not answer" if isinstance(error, TimeoutError) else str(error)
                shut = isinstance(error, TimeoutError | ConnectionRefusedError)  # a reset may be one connection's fate
                self._fault(f"no connection: {said}", None, shut=shut)
                continue
            except TransportError as error:
                self._put_back(span)
                self._fail(error)
                return
            flying = deque([span])
            try:
                self._converse(line, flying)
            except (OSError, ValueError) as error:
                self._fault(str(error) or type(error).__name__, line, heavy=isinstance(error, Stalled))
            except (TransportError, IntegrityError) as error:
                self._fail(error)
            else:
                if self._keep(line):
                    return
            finally:
                with self._change:
                    self._lines.discard(line)
                for each in reversed(flying):
                    self._put_back(each)
            line.close()

    def _connected(self) -> Line:
        line = Line(self._door, self._timeout)
        with self._change:
            self._lines.add(line)
            self.reached = True
        if self._stopped:
            line.cut()
        return line

    def _converse(self, line: Line, flying: deque[Range]) -> None:
        """Keep a few spans under way; `flying` are those that nobody has acknowledged."""
        span: Range | None = flying[0]
        size, settled = FIRST_SPAN, False
        while True:
            if span is not None:
                self._pay(span.length)
                line.put(self._fd, span, self._job.manifest.size, self._digest(span))
                self._tell(self._job.sent, span.length)
            if span is None or not settled or len(flying) >= BEHIND:
                status, words = line.answer()
                self._answered(flying[0], status, words)
                flying.popleft()
                if line.age > 0:
                    wanted = int(line.carried / line.age * SPAN_SECONDS)
                    size = min(MOST_SPAN, max(LEAST_SPAN, 1 << wanted.bit_length()))
                settled = True
            span = self._take(size, wait=not flying)
            if span is not None:
                flying.append(span)
            elif not flying:
                return

    def _answered(self, span: Range, status: int, words: str) -> None:
        node = self._job.request.node.name
        if status in ENOUGH:
            with self._change:
                self._faults, self._gained = 0, True
                self._flying -= 1
                self._change.notify_all()
                chunk = span.start // self._job.manifest.grain
                self._lacking[chunk] -= span.length
                whole = not self._lacking[chunk]
            self._tell(self._job.progress, span.length)
            if whole and self._back is not None:
                self._tell(self._back.arrived, chunk)
        elif status == 422:
            chunk = span.start // self._job.manifest.grain
            with self._change:
                self._wrong[chunk] += 1
                hopeless = self._wrong[chunk] >= WRONG
            if not self._job.request.source.unchanged():
                raise changed(self._job)
            if hopeless:
                raise IntegrityError(
                    f"bytes {span.start} to {span.stop} arrive wrong again and again ({WRONG} times)",
                    node=node,
                    remedy="Look for what alters data on the way to the data port: a proxy, or faulty memory",
                )
            self._put_back(span)
        elif status == 507:
            raise Fatal(f"the disk is full ({words.strip()})", node=node, remedy="Make room, or choose another place")
        else:
            raise ValueError(f"it answered {status} {words.strip()}".strip())

    def _digest(self, span: Range) -> str | None:
        """Give what a span has to hash to: TLS keeps bytes as they are, and what is read back at once speaks itself."""
        if self._door.fingerprint is not None or self._back is not None:
            return None
        manifest = self._job.manifest
        index, short = divmod(span.start, manifest.grain)
        if not short and span == manifest.chunk(index):
            digest = bytes.fromhex(manifest.digest(index))
        else:
            digest = hashlib.sha256(os.pread(self._fd, span.length, span.start)).digest()
        return f"sha-256=:{base64.b64encode(digest).decode()}:"

    def _pay(self, count: int) -> None:
        if self._job.limiter.rate is None:
            return
        paid = asyncio.run_coroutine_threadsafe(self._job.limiter.take(count), self._loop)
        while not self._stopped:
            with contextlib.suppress(TimeoutError):
                paid.result(0.25)
                return
        paid.cancel()
        raise OSError("the move was stopped")

    def _tell(self, what: Callable[[int], None], count: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(what, count)

    # What is to be done

    def _take(self, most: int, *, wait: bool) -> Range | None:
        """Give the next span, None where nothing is to do; with `wait` only once that stays so."""
        rate = self._job.limiter.rate
        if rate is not None:
            most = min(most, max(4096, int(rate / 8)))
        with self._change:
            while not self._todo and self._flying and wait and not self._over:
                self._change.wait()
            if self._over or not self._todo:
                return None
            span = self._todo.popleft()
            if span.length > most:
                self._todo.appendleft(Range(span.start + most, span.stop))
                span = Range(span.start, span.start + most)
            self._flying += 1
            return span

    def _put_back(self, span: Range) -> None:
        with self._change:
            self._flying -= 1
            self._todo.appendleft(span)
            self._change.notify_all()

    @property
    def _over(self) -> bool:
        return self._stopped or self._error is not None

    def _keep(self, line: Line) -> bool:
        """Keep one line of those that have done their work, for the goodbye."""
        with self._change:
            if self._door.once and self._spare is None and not self._over:
                self._spare = line
                return True
        return False

    # Ends

    def _fault(self, what: str, line: Line | None, *, heavy: bool = False, shut: bool = False) -> None:
        """Note that a line broke; without anything acknowledged in between, it ends the attempt in the end.

        `heavy`: it took long to find out, so that a few of these are enough. `shut`: nobody took the call.
        """
        node = self._job.request.node.name
        if self._stopped:
            return
        with self._change:
            self._faults += self._count if heavy else 1
            hopeless = (shut and not self.reached) or self._faults > 2 * self._count
        if line is not None:
            lost = ConnectionLost(node, "http", what, round(line.age, 2), line.carried)
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._job.emit, lost)
        if hopeless:  # what has brought something is worth another try, with a new receiver
            kind = Transient if self._gained else Unusable
            self._fail(kind(f"{self._door.name} cannot be used: {what}", node=node, tried=f"PUT {self._door.name}"))

    def _fail(self, error: TransportError | IntegrityError) -> None:
        with self._change:
            self._error = self._error or error
        self._cut()

    def _stop(self) -> None:
        with self._change:
            self._stopped = True
        self._cut()

    def _cut(self) -> None:
        with self._change:
            self._change.notify_all()
            lines = [*self._lines]
        for line in lines:
            line.cut()


__all__ = ["Sender", "changed", "goodbye"]
