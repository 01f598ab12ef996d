"""The board: every byte is somewhere, nothing is lost, nothing is done that was not checked, and all of it quickly."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rrmove.manifest import DIGEST, GRAIN, MOST_CHUNKS, Manifest, Range, merged, total
from rrmove_plugins.chunked.board import Board

if TYPE_CHECKING:
    from collections.abc import Callable

LANES = st.integers(0, 2)
LIMITS = st.sampled_from([1, 3, 8, 50])
BAD = st.integers(0, 1 << 20)


def manifest_of(size: int, grain: int) -> Manifest:
    return Manifest(size, grain, bytes(DIGEST * -(-size // grain)))


def whole(manifest: Manifest) -> list[Range]:
    return [Range(0, manifest.size)] if manifest.size else []


def finish(board: Board[int], lane: int = 99) -> Counter[int]:
    """Let one fresh lane, on which nothing goes wrong, do all that is left; gives how often it sent each byte.

    It looks at doubts first, finds nothing of them, and has every check turn out well.
    """
    sent: Counter[int] = Counter()
    for _ in range(10_000):
        if board.done:
            return sent
        for doubt in board.doubts(5):
            board.again(doubt)
        for index in board.ready():
            board.verdict(index, good=True)
        if (span := board.take(lane, 3)) is not None:
            sent.update(range(span.start, span.stop))
            board.landed(lane, span)
    raise AssertionError(f"stuck with {board}")


class Boards(RuleBasedStateMachine):
    """Lanes do anything in any order; beside the board, the truth is kept byte by byte."""

    @initialize(size=st.sampled_from([4, 0, 1, 8, 11, 30]), grain=st.sampled_from([4, 1, 3, 12]), data=st.data())
    def begin(self, size: int, grain: int, data: st.DataObject) -> None:
        self.manifest = manifest_of(size, grain)
        picks = data.draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size)), max_size=3))
        missing = [Range(min(pair), max(pair)) for pair in picks] or whole(self.manifest)
        self.board: Board[int] = Board.of(self.manifest, missing)
        self.undone = set(self.manifest.chunks_of(missing))
        self.written: dict[int, set[int]] = {index: set() for index in self.undone}
        self.flying: dict[int, list[Range]] = {}
        self.looking: list[Range] = []
        self.checking: set[int] = set()

    def chunk_of(self, span: Range) -> int:
        return span.start // self.manifest.grain

    def note(self, span: Range) -> int:
        """Note a span as written; gives how many bytes of it were not."""
        index = self.chunk_of(span)
        if index not in self.undone:
            return 0
        before = len(self.written[index])
        self.written[index].update(range(span.start, span.stop))
        return len(self.written[index]) - before

    def one_flying(self, lane: int, pick: int) -> Range | None:
        spans = self.flying.get(lane)
        return spans.pop(pick % len(spans)) if spans else None

    @rule(lane=LANES, limit=LIMITS)
    def take(self, lane: int, limit: int) -> None:
        idle = self.board.idle
        span = self.board.take(lane, limit)
        assert (span is None) == idle
        if span is not None:
            assert 0 < span.length <= limit
            assert self.chunk_of(span) in self.undone
            assert span.stop <= self.manifest.chunk(self.chunk_of(span)).stop  # no chunk's border in between
            self.flying.setdefault(lane, []).append(span)

    @rule(lane=LANES, other=LANES)
    def hedge(self, lane: int, other: int) -> None:
        span = self.board.hedge(lane, other)
        elsewhere = [item for held, spans in self.flying.items() if held != other for item in spans]
        theirs = self.flying.get(other, []) if other != lane else []
        candidates = [item for item in theirs if item not in elsewhere]
        assert (span is None) == (not candidates)
        if span is not None:
            assert span in candidates
            self.flying.setdefault(lane, []).append(span)

    @rule(lane=LANES, pick=BAD)
    def land(self, lane: int, pick: int) -> None:
        span = self.one_flying(lane, pick)
        if span is not None:
            assert self.board.landed(lane, span) == self.note(span)

    @rule(lane=LANES, pick=BAD)
    def return_unsent(self, lane: int, pick: int) -> None:
        span = self.one_flying(lane, pick)
        if span is not None:
            self.board.returned(lane, span)

    @rule(lane=LANES, pick=BAD)
    def lose(self, lane: int, pick: int) -> None:
        self.board.lost(lane)
        spans = self.flying.pop(lane, [])
        if spans and pick % 2:  # an acknowledgement may still be read after the lane was given up
            span = spans[pick % len(spans)]
            assert self.board.landed(lane, span) == self.note(span)

    @rule(limit=LIMITS)
    def look_at_doubts(self, limit: int) -> None:
        spans = self.board.doubts(limit)
        assert total(spans) <= limit or len(spans) == 1
        self.looking += spans

    @rule()
    def look_in_vain(self) -> None:
        self.board.doubt(self.looking)
        self.looking = []

    @precondition(lambda self: self.looking)
    @rule(pick=BAD)
    def find(self, pick: int) -> None:
        span = self.looking.pop(pick % len(self.looking))
        assert self.board.found(span) == self.note(span)

    @precondition(lambda self: self.looking)
    @rule(pick=BAD)
    def miss(self, pick: int) -> None:
        self.board.again(self.looking.pop(pick % len(self.looking)))

    @rule()
    def check(self) -> None:
        found = self.board.ready()
        for index in found:
            assert index not in self.checking
            chunk = self.manifest.chunk(index)
            assert self.written[index] == set(range(chunk.start, chunk.stop))
        self.checking.update(found)

    @precondition(lambda self: self.checking)
    @rule(pick=BAD)
    def check_in_vain(self, pick: int) -> None:
        index = sorted(self.checking)[pick % len(self.checking)]
        self.checking.remove(index)
        self.board.unchecked(index)
        found = self.board.ready()  # nothing has to happen first
        assert index in found
        self.checking.update(found)

    @precondition(lambda self: self.checking)
    @rule(pick=BAD, good=st.booleans())
    def judge(self, pick: int, good: bool) -> None:  # noqa: FBT001
        index = sorted(self.checking)[pick % len(self.checking)]
        self.checking.remove(index)
        self.board.verdict(index, good=good)
        if good:
            self.undone.remove(index)
            del self.written[index]
        else:
            self.written[index].clear()

    @rule(lane=LANES, good=st.booleans())
    def go_on(self, lane: int, good: bool) -> None:  # noqa: FBT001
        """Do what mostly happens: a lane's oldest frame lands, and what is complete is checked."""
        self.land(lane, 0)
        self.check()
        for _ in range(len(self.checking)):
            self.judge(0, good)

    @invariant()
    def the_account_is_exact(self) -> None:
        if not hasattr(self, "board"):
            return
        chunks = {index: self.manifest.chunk(index) for index in self.undone}
        assert self.board.left == sum(chunk.length - len(self.written[i]) for i, chunk in chunks.items())
        assert self.board.done == (not self.undone)
        for lane in range(3):
            assert self.board.in_flight(lane) == total(self.flying.get(lane, []))

    def teardown(self) -> None:
        """From wherever that led, a fresh lane can bring it to its end."""
        if not hasattr(self, "board"):
            return
        for lane in range(3):
            self.board.lost(lane)
        self.board.doubt(self.looking)
        for index in self.checking:
            self.board.unchecked(index)
        unwritten = {
            at
            for index in self.undone
            for at in range(self.manifest.chunk(index).start, self.manifest.chunk(index).stop)
            if at not in self.written[index]
        }
        sent = finish(self.board)
        assert unwritten <= set(sent)
        assert self.board.left == 0


TestBoards = Boards.TestCase
TestBoards.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 200), st.integers(1, 30), st.integers(1, 50))
def test_undisturbed_every_byte_is_sent_once_and_in_order(size: int, grain: int, limit: int) -> None:
    board: Board[str] = Board.of(manifest_of(size, grain), [Range(0, size)])
    sent = list[Range]()
    while (span := board.take("lane", limit)) is not None:
        sent.append(span)
    assert merged(sent) == ((Range(0, size),) if size else ())
    assert sent == sorted(sent)
    assert total(sent) == size


def test_lanes_work_on_chunks_of_their_own_while_there_are_any() -> None:
    board: Board[str] = Board.of(manifest_of(40, 10), [Range(0, 40)])
    taken = [(lane, board.take(lane, 5)) for lane in "abab"]
    assert taken == [("a", Range(0, 5)), ("b", Range(10, 15)), ("a", Range(5, 10)), ("b", Range(15, 20))]
    assert [board.take(lane, 5) for lane in "aabb"] == [Range(20, 25), Range(25, 30), Range(30, 35), Range(35, 40)]
    assert board.idle
    assert board.take("a", 5) is None


def test_lanes_share_the_last_chunk() -> None:
    board: Board[str] = Board.of(manifest_of(10, 10), [Range(0, 10)])
    assert [board.take(lane, 4) for lane in "abc"] == [Range(0, 4), Range(4, 8), Range(8, 10)]


def test_what_a_dead_lane_left_goes_first() -> None:
    board: Board[str] = Board.of(manifest_of(40, 10), [Range(0, 40)])
    assert board.take("a", 5) == Range(0, 5)
    board.lost("a")
    assert board.doubts(1) == [Range(0, 5)]
    board.again(Range(0, 5))
    assert [board.take("b", 5) for _ in range(3)] == [Range(5, 10), Range(0, 5), Range(10, 15)]


def test_a_hedged_copy_that_lands_after_a_bad_verdict_leaves_nothing_broken() -> None:
    board: Board[str] = Board.of(manifest_of(4, 4), [Range(0, 4)])
    span = board.take("a", 4)
    assert span is not None
    assert board.hedge("b", "a") == span
    board.landed("a", span)
    assert board.ready() == [0]
    board.verdict(0, good=False)
    board.landed("b", span)  # complete again, while it waits to be sent again
    assert board.ready() == [0]
    board.verdict(0, good=True)
    assert board.done
    assert board.take("a", 4) is None


# How quickly. The figures are relative: the same work with 64 times the chunks.


def seconds_for(count: int, work: Callable[[Board[int], int], object]) -> float:
    """Measure some hundred rounds of work on a board of `count` chunks of which some are under way; the best of 3."""
    best = float("inf")
    for _ in range(3):
        manifest = manifest_of(count * GRAIN, GRAIN)
        board: Board[int] = Board.of(manifest, [Range(0, manifest.size)])
        for lane in range(16):
            for _ in range(64):
                board.take(lane, 32 << 10)
        begun = time.perf_counter()
        for round_ in range(300):
            work(board, round_)
        best = min(best, time.perf_counter() - begun)
    return best


def frame(board: Board[int], round_: int) -> None:
    span = board.take(round_ % 16, 128 << 10)
    assert span is not None
    board.landed(round_ % 16, span)


def lose_one(board: Board[int], round_: int) -> None:
    if round_ % 30:
        return
    lane = round_ // 30
    board.lost(lane)
    for span in board.doubts(1 << 30):
        board.again(span)


WORK: dict[str, Callable[[Board[int], int], object]] = {
    "left": lambda board, _: board.left,
    "idle": lambda board, _: board.idle,
    "ready": lambda board, _: board.ready(),
    "in_flight": lambda board, lane: board.in_flight(lane % 16),
    "hedge": lambda board, lane: board.hedge(lane % 16, (lane + 1) % 16),
    "frame": frame,
    "lost": lose_one,
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_nothing_that_is_asked_for_every_frame_grows_with_the_file(work: Callable[[Board[int], int], object]) -> None:
    few, many = seconds_for(1024, work), seconds_for(MOST_CHUNKS, work)
    assert many < 8 * few + 0.005


def test_a_lane_that_was_lost_meanwhile_gets_no_early_check() -> None:
    board: Board[int] = Board.of(manifest_of(4, 4), [Range(0, 4)])
    span = board.take(1, 4)
    assert span is not None
    board.lost(1)
    assert board.early(1, span) is None
