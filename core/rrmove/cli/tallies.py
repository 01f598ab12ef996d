"""What the moves of one file to many nodes have come to so far, added up: pure, the time is passed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrmove.cli.tally import Tally
from rrmove.events import Finished

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rrmove.events import Event
    from rrmove.model import Outcome


class Tallies:
    """A tally for each node, and their sum.

    `size` is the file's, 0 where nobody knows it yet. Places on one node take turns, and its tally
    is that of the one whose turn it is.
    """

    def __init__(self, nodes: Sequence[str], size: int, at_once: int) -> None:
        self.names = tuple(dict.fromkeys(nodes))
        self.done: dict[str, list[Outcome]] = {name: [] for name in self.names}
        self._of = {name: Tally() for name in self.names}
        self._places, self._size, self._at_once = len(nodes), size, at_once
        self._many = {name: nodes.count(name) for name in self.names}

    def see(self, event: Event, now: float) -> None:
        """Take one event into account; who is spoken of, it says."""
        if event.node not in self._of or isinstance(event, Finished):
            return
        if self._of[event.node].stage == "done" and self.done[event.node] and not self.over(event.node):
            self._of[event.node] = Tally()
        tally = self._of[event.node]
        tally.see(event, now)
        self._size = max(self._size, tally.size)

    def ended(self, outcome: Outcome) -> None:
        """Take the end of one move into account."""
        name = outcome.request.node.name
        self.done[name].append(outcome)
        self._of[name].stage = "done"
        self._size = max(self._size, outcome.request.source.size)

    def of(self, name: str) -> Tally:
        """Give the tally of a node."""
        return self._of[name]

    def over(self, name: str) -> bool:
        """Tell whether all moves to a node have ended."""
        return len(self.done[name]) == self._many[name]

    def failed(self, name: str) -> bool:
        """Tell whether one of the moves to a node did not arrive."""
        return any(not outcome.ok for outcome in self.done[name])

    def queued(self, name: str) -> bool:
        """Tell whether a node waits for its turn: so many are allowed at once, and nothing was heard of it."""
        if self._of[name].node or self.over(name):
            return False
        before = [each for each in self.names[: self.names.index(name)] if not self.over(each)]
        return len(before) >= self._at_once

    @property
    def begun(self) -> bool:
        """Whether anything is being sent, or was."""
        return any(tally.begun for tally in self._of.values())

    @property
    def arrived(self) -> int:
        """How many places have the file."""
        return sum(outcome.ok for each in self.done.values() for outcome in each)

    @property
    def lost(self) -> int:
        """How many places will not get it."""
        return sum(not outcome.ok for each in self.done.values() for outcome in each)

    @property
    def places(self) -> int:
        """How many places there are."""
        return self._places

    @property
    def size(self) -> int:
        """The bytes that are to be in all places; those that failed are left out."""
        return self._size * (self._places - self.lost)

    @property
    def durable(self) -> int:
        """How many of them are there."""
        under_way = (tally.durable for name, tally in self._of.items() if not self.over(name) and tally.stage != "done")
        return min(self.size, self._size * self.arrived + sum(under_way))

    def rate(self, now: float) -> float | None:
        """Give durable bytes a second, of all together; None where there is no evidence."""
        rates = [self._of[name].rate(now) for name in self.names if not self.over(name)]
        return sum(rate or 0.0 for rate in rates) or None

    def remaining(self, now: float) -> float | None:
        """Give the seconds to the last byte at this rate; None where nobody can know."""
        rate = self.rate(now)
        return None if rate is None or not self.size else (self.size - self.durable) / rate
