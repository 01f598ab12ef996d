"""The board: which bytes are still to be sent, which are flying, which are doubtful. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rrmove import Manifest, Range, merged, total

L = TypeVar("L", bound=Hashable)


@dataclass(slots=True)
class _Chunk:
    """One chunk's spans: `todo` to be sent, `written` what is there, `open` bytes nobody has acknowledged yet."""

    todo: deque[Range]
    open: int
    written: tuple[Range, ...] = ()


@dataclass(slots=True)
class _Flight:
    """What a lane has sent and the node has not acknowledged: spans, oldest first, each with how often it flies."""

    spans: dict[Range, int] = field(default_factory=dict)
    length: int = 0

    def add(self, span: Range) -> None:
        self.spans[span] = self.spans.get(span, 0) + 1
        self.length += span.length

    def discard(self, span: Range) -> None:
        times = self.spans.get(span)
        if times is None:
            return
        self.length -= span.length
        if times > 1:
            self.spans[span] = times - 1
        else:
            del self.spans[span]


@dataclass(slots=True)
class Board(Generic[L]):
    """Hand out spans of missing chunks to lanes, and keep account of what became of them.

    A span is to do, flying on one lane or more, doubtful (its lane died before it said what it had
    written) or written; a chunk all of whose spans are written is ready to be checked, and done
    when the check was good. A span never crosses a chunk's border. Lanes work on chunks of their
    own as long as there are any, so that the node's disk sees long runs.

    A chunk with something to do is either waiting or the one that some lane is working on, never
    both. All that is asked for every frame costs the same however many chunks there are.
    """

    manifest: Manifest
    left: int = 0  # bytes that are not acknowledged yet
    chunks: dict[int, _Chunk | None] = field(default_factory=dict)  # those not done; None: untouched
    waiting: OrderedDict[int, None] = field(default_factory=OrderedDict)
    working: dict[L, int] = field(default_factory=dict)
    flying: dict[L, _Flight] = field(default_factory=dict)
    doubtful: deque[Range] = field(default_factory=deque)
    complete: dict[int, None] = field(default_factory=dict)  # wholly written, nobody checks it yet
    checking: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, manifest: Manifest, missing: Iterable[Range]) -> Board[L]:
        """Begin with these ranges missing; whole chunks, since only those can be verified."""
        board: Board[L] = cls(manifest)
        for index in manifest.chunks_of(missing):
            board.chunks[index] = board.waiting[index] = None
            board.left += manifest.chunk(index).length
        return board

    @property
    def done(self) -> bool:
        """Whether every chunk was checked and found good."""
        return not self.chunks

    @property
    def idle(self) -> bool:
        """Whether nothing is left to hand out, though something may still be flying."""
        return not self.waiting and not self.working

    def take(self, lane: L, limit: int) -> Range | None:
        """Give a lane its next span of at most `limit` bytes, None where nothing is to do."""
        worker = lane
        if lane not in self.working:
            if self.waiting:
                self.working[lane] = self.waiting.popitem(last=False)[0]
            elif self.working:
                worker = next(iter(self.working))
            else:
                return None
        chunk = self._chunk(self.working[worker])
        span = chunk.todo.popleft()
        if span.length > limit:
            chunk.todo.appendleft(Range(span.start + limit, span.stop))
            span = Range(span.start, span.start + limit)
        elif not chunk.todo:
            del self.working[worker]
        self.flying.setdefault(lane, _Flight()).add(span)
        return span

    def hedge(self, lane: L, other: L) -> Range | None:
        """Near the end, give an idle lane the span that a slower one sent last, if it has not had it yet.

        The last, since the first is about to arrive there. Writes are positional and idempotent,
        so that the same span twice does no harm.
        """
        theirs = self.flying.get(other)
        mine = self.flying.setdefault(lane, _Flight())
        for span in reversed(theirs.spans) if theirs is not None and other != lane else ():
            if not any(span in flight.spans for held, flight in self.flying.items() if held != other):
                mine.add(span)
                return span
        return None

    def in_flight(self, lane: L) -> int:
        """Bytes that a lane has sent and the node has not acknowledged."""
        flight = self.flying.get(lane)
        return flight.length if flight else 0

    def landed(self, lane: L, span: Range) -> int:
        """Note that a lane's span is written; gives how many of its bytes are news."""
        if lane in self.flying:
            self.flying[lane].discard(span)
        return self._wrote(span)

    def found(self, span: Range) -> int:
        """Note that a doubtful span is there after all; gives how many of its bytes are news."""
        return self._wrote(span)

    def lost(self, lane: L) -> None:
        """Note that a lane died: what flew on it alone is doubtful now."""
        spans = self.flying.pop(lane, _Flight()).spans
        self.doubtful.extend(span for span in spans if not self._flies(span))
        index = self.working.pop(lane, None)
        if index is not None:
            self._wait(index)

    def doubts(self, limit: int) -> list[Range]:
        """Take doubtful spans of at most `limit` bytes in all (one at least), to have them looked at."""
        taken, length = list[Range](), 0
        while self.doubtful and (not taken or length + self.doubtful[0].length <= limit):
            span = self.doubtful.popleft()
            if self._index(span) in self.chunks:
                taken.append(span)
                length += span.length
        return taken

    def doubt(self, spans: Iterable[Range]) -> None:
        """Put spans back that nobody could look at."""
        self.doubtful.extend(spans)

    def again(self, span: Range) -> None:
        """Have a span sent once more: it is not there, or its lane would not take it."""
        index = self._index(span)
        if index not in self.chunks or self._flies(span):
            return
        chunk = self._chunk(index)
        missing = _without([span], (*chunk.written, *chunk.todo))
        if missing:
            idle = not chunk.todo
            chunk.todo.extend(missing)
            if idle:
                self._wait(index)

    def returned(self, lane: L, span: Range) -> None:
        """Note that a lane never sent a span that it had taken."""
        if lane in self.flying:
            self.flying[lane].discard(span)
        self.again(span)

    def ready(self) -> list[int]:
        """Give the chunks that are wholly written and not being checked; they are, from now on."""
        found = list(self.complete)
        self.complete.clear()
        self.checking.update(found)
        return found

    def early(self, lane: L, span: Range) -> int | None:
        """Near the end, give the chunk of a lane's span if the check may follow on the lane's heels.

        It may where all that is not acknowledged of the chunk flies on this very lane: the node reads
        the chunk back after it has written those. The chunk counts as being checked from now on.
        """
        index = self._index(span)
        chunk = self.chunks.get(index)
        if self.waiting or chunk is None or chunk.todo or index in self.checking or not chunk.open:
            return None
        flight = self.flying.get(lane)  # None where the lane was lost in the meantime
        flying = sum(item.length for item in flight.spans if self._index(item) == index) if flight else 0
        if flying != chunk.open:
            return None
        self.checking.add(index)
        return index

    def unchecked(self, index: int) -> None:
        """Note that a check came to nothing, because its lane died; `ready()` gives the chunk again."""
        if index in self.checking:
            self.checking.remove(index)
            chunk = self.chunks.get(index)
            if chunk is not None and not chunk.open:
                self.complete[index] = None

    def verdict(self, index: int, *, good: bool) -> None:
        """Note what a check found: a good chunk is done, a wrong one is sent again as a whole."""
        self.checking.discard(index)
        self.complete.pop(index, None)
        if index not in self.chunks:
            return
        self._leave(index)
        old, item = self.chunks[index], self.manifest.chunk(index)
        self.left += item.length - (old.open if old else item.length)
        if good:
            del self.chunks[index]
            self.left -= item.length
            return
        self.doubtful = deque(span for span in self.doubtful if self._index(span) != index)
        self.chunks[index] = None
        self.waiting[index] = None

    def _index(self, span: Range) -> int:
        return span.start // self.manifest.grain

    def _chunk(self, index: int) -> _Chunk:
        chunk = self.chunks[index]
        if chunk is None:
            item = self.manifest.chunk(index)
            chunk = self.chunks[index] = _Chunk(deque([item]), item.length)
        return chunk

    def _flies(self, span: Range) -> bool:
        return any(span in flight.spans for flight in self.flying.values())

    def _wait(self, index: int) -> None:
        """Put a chunk before all others that wait: part of it is on the node already."""
        self.waiting[index] = None
        self.waiting.move_to_end(index, last=False)

    def _leave(self, index: int) -> None:
        """Take a chunk off everybody's list."""
        self.waiting.pop(index, None)
        for lane in [lane for lane, at in self.working.items() if at == index]:
            del self.working[lane]

    def _wrote(self, span: Range) -> int:
        index = self._index(span)
        if index not in self.chunks:
            return 0
        chunk = self._chunk(index)
        news = total(_without([span], chunk.written))
        if news:
            chunk.written = merged([*chunk.written, span])
            chunk.open -= news
            self.left -= news
            if not chunk.open:
                chunk.todo.clear()
                self._leave(index)
                if index not in self.checking:
                    self.complete[index] = None
        return news


def _without(spans: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """Give what is in `spans` and in none of the others."""
    rest = list(spans)
    for other in others:
        rest = [
            piece
            for old in rest
            for piece in (Range(old.start, min(old.stop, other.start)), Range(max(old.start, other.stop), old.stop))
            if piece.length > 0
        ]
    return rest
