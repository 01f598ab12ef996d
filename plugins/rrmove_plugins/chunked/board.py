"""The board: which bytes are still to be sent, which are flying, which are doubtful. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rrmove import Manifest, Range, merged

L = TypeVar("L", bound=Hashable)


@dataclass(slots=True)
class _Chunk:
    """One chunk's spans: `todo` to be sent, `open` bytes that nobody has acknowledged yet."""

    todo: deque[Range]
    open: int


@dataclass(slots=True)
class Board(Generic[L]):
    """Hand out spans of missing chunks to lanes, and keep account of what became of them.

    A span is to do, flying on one lane or more, doubtful (its lane died before it said what it had
    written) or written; a chunk all of whose spans are written is ready to be checked, and done
    when the check was good. A span never crosses a chunk's border. Lanes work on chunks of their
    own as long as there are any, so that the node's disk sees long runs.
    """

    manifest: Manifest
    chunks: dict[int, _Chunk] = field(default_factory=dict)
    waiting: deque[int] = field(default_factory=deque)
    owner: dict[int, L] = field(default_factory=dict)
    flying: dict[L, deque[Range]] = field(default_factory=dict)
    doubtful: deque[Range] = field(default_factory=deque)
    written: dict[int, list[Range]] = field(default_factory=dict)
    checking: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, manifest: Manifest, missing: Iterable[Range]) -> Board[L]:
        """Begin with these ranges missing; whole chunks, since only those can be verified."""
        board: Board[L] = cls(manifest)
        for index in manifest.chunks_of(missing):
            board._reset(index)
        return board

    @property
    def done(self) -> bool:
        """Whether every chunk was checked and found good."""
        return not self.chunks

    @property
    def left(self) -> int:
        """Bytes that are not acknowledged yet."""
        return sum(chunk.open for chunk in self.chunks.values())

    @property
    def idle(self) -> bool:
        """Whether nothing is left to hand out, though something may still be flying."""
        return not self.waiting and not any(self.chunks[i].todo for i in self.owner if i in self.chunks)

    def take(self, lane: L, limit: int) -> Range | None:
        """Give a lane its next span of at most `limit` bytes, None where nothing is to do."""
        index = next((i for i, owner in self.owner.items() if owner == lane and self.chunks[i].todo), None)
        if index is None:
            if self.waiting:
                index = self.waiting.popleft()
                self.owner[index] = lane
            else:
                index = next((i for i in self.owner if self.chunks[i].todo), None)
        if index is None:
            return None
        todo = self.chunks[index].todo
        span = todo.popleft()
        if span.length > limit:
            todo.appendleft(Range(span.start + limit, span.stop))
            span = Range(span.start, span.start + limit)
        self.flying.setdefault(lane, deque()).append(span)
        return span

    def hedge(self, lane: L, limit: int) -> Range | None:
        """Near the end, give an idle lane the oldest span that flies on another and not on it yet.

        Writes are positional and idempotent, so that the same span twice does no harm.
        """
        mine = set(self.flying.get(lane, ()))
        for other, spans in self.flying.items():
            for span in spans if other != lane else ():
                if span not in mine and span.length <= limit:
                    self.flying.setdefault(lane, deque()).append(span)
                    return span
        return None

    def in_flight(self, lane: L) -> int:
        """Bytes that a lane has sent and the node has not acknowledged."""
        return sum(span.length for span in self.flying.get(lane, ()))

    def landed(self, lane: L, span: Range) -> int:
        """Note that a lane's span is written; gives how many of its bytes are news."""
        spans = self.flying.get(lane)
        if spans and span in spans:
            spans.remove(span)
        return self._wrote(span)

    def found(self, span: Range) -> int:
        """Note that a doubtful span is there after all; gives how many of its bytes are news."""
        return self._wrote(span)

    def lost(self, lane: L) -> None:
        """Note that a lane died: what flew on it alone is doubtful now."""
        spans = self.flying.pop(lane, deque())
        elsewhere = {span for others in self.flying.values() for span in others}
        self.doubtful.extend(span for span in spans if span not in elsewhere)
        for index in [i for i, owner in self.owner.items() if owner == lane]:
            del self.owner[index]
            if index in self.chunks and self.chunks[index].todo:
                self.waiting.appendleft(index)

    def doubts(self, limit: int) -> list[Range]:
        """Take doubtful spans of at most `limit` bytes in all (one at least), to have them looked at."""
        taken: list[Range] = []
        while self.doubtful and (not taken or sum(s.length for s in taken) + self.doubtful[0].length <= limit):
            taken.append(self.doubtful.popleft())
        return [span for span in taken if span.start // self.manifest.grain in self.chunks]

    def doubt(self, spans: Iterable[Range]) -> None:
        """Put spans back that nobody could look at."""
        self.doubtful.extend(spans)

    def again(self, span: Range) -> None:
        """Have a span sent once more: it is not there, or its lane would not take it."""
        index = span.start // self.manifest.grain
        chunk = self.chunks.get(index)
        if chunk is None:
            return
        for spans in self.flying.values():
            if span in spans:
                return
        missing = self._unwritten(index, span)
        chunk.todo.extend(missing)
        if missing and index not in self.owner and index not in self.waiting:
            self.waiting.appendleft(index)

    def returned(self, lane: L, span: Range) -> None:
        """Note that a lane never sent a span that it had taken."""
        spans = self.flying.get(lane)
        if spans and span in spans:
            spans.remove(span)
        self.again(span)

    def ready(self) -> list[int]:
        """Give the chunks that are wholly written and not being checked; they are, from now on."""
        found = [i for i in self.written if i in self.chunks and not self.chunks[i].open and i not in self.checking]
        self.checking.update(found)
        return found

    def unchecked(self, index: int) -> None:
        """Note that a check came to nothing, because its lane died."""
        self.checking.discard(index)

    def verdict(self, index: int, *, good: bool) -> None:
        """Note what a check found: a good chunk is done, a wrong one is sent again as a whole."""
        self.checking.discard(index)
        self.owner.pop(index, None)
        self.written.pop(index, None)
        if good:
            self.chunks.pop(index, None)
        else:
            self._reset(index)

    def _reset(self, index: int) -> None:
        item = self.manifest.chunk(index)
        self.chunks[index] = _Chunk(deque([item]), item.length)
        self.waiting.append(index)

    def _unwritten(self, index: int, span: Range) -> list[Range]:
        rest = [span]
        for done in self.written.get(index, ()):
            rest = [
                piece
                for old in rest
                for piece in (Range(old.start, min(old.stop, done.start)), Range(max(old.start, done.stop), old.stop))
                if piece.length > 0
            ]
        return rest

    def _wrote(self, span: Range) -> int:
        index = span.start // self.manifest.grain
        chunk = self.chunks.get(index)
        if chunk is None:
            return 0
        news = sum(piece.length for piece in self._unwritten(index, span))
        chunk.open -= news
        self.written[index] = list(merged([*self.written.get(index, ()), span]))
        return news
