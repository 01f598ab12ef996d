"""After this attempt, what next: the same again, another step, or give up. Pure.

The rules, in the order in which they are asked:

1. A fatal failure ends the move: no transport helps.
2. Nothing is missing: succeed; but not after an integrity failure.
3. The deadline has passed, or would while waiting: give up.
4. A node of which nothing was ever heard gets a few tries, however many transports there are.
5. A transport is tried again while its budget lasts. Budgets count attempts *without progress*,
   and progress resets them: a link that yields 6 MB a connection is slow, not broken.
6. Then comes the next step; steps that are not expected to finish come last.
7. Once all are used up: from the top if anything was gained in this round, else give up.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from rrmove.model import GiveUp, Succeed, Try

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rrmove.model import Action, Attempt, FailureKind, Plan, Step

# The budgets are chosen, not measured, between two bounds: on a dead node they end within
# seconds, and all connections they cause stay well below the 19 or so at which sshd was measured
# to shut a source out (PerSourcePenalties).
BUDGET = 3  # attempts in a row without progress, per transport and round
LIE_BUDGET = 2  # attempts that returned with bytes still missing, per transport and round
INTEGRITY_BUDGET = 3  # per transport: the first, and the bad chunks sent again twice
INTEGRITY_TRANSPORTS = 2  # where two have delivered wrong bytes, a third will not mend it
UNHEARD_BUDGET = 4  # attempts in all, while the node was never heard of in this move
UNHEARD_SHARE = 2  # of these, for one transport while another waits for its turn
WIPES = 3  # times that a part file may vanish and be filled anew; sending what goes lost has no end
LOST_BUDGET = 8  # such attempts in a row on a node that was heard of before: about a minute

_AGAIN: Mapping[FailureKind | None, str] = MappingProxyType(
    {None: "it stopped with bytes missing", "integrity": "the chunks that differ are sent again"}
)
FIRST_PAUSE = 1.0  # seconds; doubled from one useless attempt to the next
LONGEST_PAUSE = 30.0  # seconds


def next_action(  # noqa: PLR0911, PLR0913 - the rules, one return each, and all they depend on
    plan: Plan,
    attempts: Sequence[Attempt],
    *,
    missing: int,
    elapsed: float,
    deadline: float | None,
    jitter: float,
) -> Action:
    """Decide what to do after these attempts.

    `missing` are the bytes that are not on the node now, as surveyed; `elapsed` and `deadline`
    are seconds since the move began; `jitter`, from 0 to 1, spreads the pauses so that several
    senders do not return at once. The same arguments give the same action. A step is always one
    of the plan's, which may have been made anew between two attempts. Raises nothing.
    """
    for attempt in attempts:
        if attempt.failure == "fatal":
            return GiveUp(f"{attempt.transport}: {attempt.error or 'no transport helps here'}")
    if missing <= 0 and not blames_integrity(attempts):
        return Succeed()
    if not plan.steps:
        return GiveUp(_ended("no transport can serve", attempts))
    if deadline is not None and elapsed >= deadline:
        return GiveUp(_late(deadline, missing, attempts))
    tally = _Tally(plan)
    for attempt in attempts:
        tally.add(attempt)
    end = tally.hopeless()
    step = tally.choose()
    if end is not None or step is None:
        return GiveUp(_ended(end or "every transport was tried without progress", attempts))
    after = tally.pause(step) * (0.5 + min(1.0, max(0.0, jitter)) / 2)
    if deadline is not None and elapsed + after >= deadline:
        return GiveUp(_late(deadline, missing, attempts))
    return Try(step, after, tally.why(step))


def blames_integrity(attempts: Sequence[Attempt]) -> bool:
    """Tell whether the last attempt brought bytes that are not what was sent.

    A GiveUp after such an attempt is an IntegrityError, after any other a TransportError.
    """
    return bool(attempts) and attempts[-1].failure == "integrity"


@dataclass(slots=True)
class _Tally:
    """What the attempts have used up; counted anew for each decision."""

    plan: Plan
    last: Attempt | None = None
    stay: str | None = None  # the transport that goes on as long as it may
    idle: Counter[str] = field(default_factory=Counter)  # in a row without progress
    lies: Counter[str] = field(default_factory=Counter)
    corrupt: Counter[str] = field(default_factory=Counter)  # for the whole move
    barred: set[str] = field(default_factory=set)  # for the whole move
    progress: bool = False  # in this round
    gained: bool = False  # by the last attempt
    heard: bool = False  # of the node, ever
    unheard: int = 0  # attempts in a row by which nothing was heard of it
    net: int = 0  # bytes gained; falls where a part was wiped
    most: int = 0  # progress is what goes beyond
    wipes: int = 0

    def add(self, attempt: Attempt) -> None:
        """Count one attempt."""
        name = attempt.transport
        self.last, self.stay = attempt, name
        self.net += attempt.gained
        if attempt.gained < 0 and self.wipes < WIPES:
            self.wipes += 1
            self.most = self.net
        returned = attempt.failure is None and attempt.error is None
        honest = not returned and attempt.failure != "integrity"
        self.gained = honest and self.net > self.most
        self.most = max(self.most, self.net)
        self._listen(attempt)
        if self.gained:
            self.progress = True
            self.idle[name] = 0
        else:
            self.idle[name] += 1
        if returned:
            self.lies[name] += 1
        elif attempt.failure == "integrity":
            self.corrupt[name] += 1
        elif attempt.failure == "unusable":
            self.barred.add(name)
        self._turn()

    def choose(self) -> Step | None:
        """Give the step to run next: the same again, or the best that is not used up."""
        usable = [step for step in self._ordered() if not self._spent(step)]
        same = [step for step in usable if step.transport == self.stay]
        return next(iter(same or usable), None)

    def hopeless(self) -> str | None:
        """Say why nothing is worth trying although steps are left, or None."""
        wrong = [name for name, count in self.corrupt.items() if count >= INTEGRITY_BUDGET]
        if len(wrong) >= INTEGRITY_TRANSPORTS:
            return "what arrives is not what was sent, again and again"
        if not self.heard and self.unheard >= UNHEARD_BUDGET:
            return "the node cannot be reached"
        if self.unheard >= LOST_BUDGET:
            return "the node can no longer be reached"
        return None

    def pause(self, step: Step) -> float:
        """Give the seconds to wait before a step."""
        if self.last is None or self.gained or self.last.failure in {"unusable", "integrity"}:
            return 0.0
        same = step.transport == self.last.transport
        streak = max(self.unheard, self.idle[step.transport] if same else 1, 1)
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(streak - 1, 16))

    def why(self, step: Step) -> str:
        """Say in a clause why this step is next."""
        if self.last is None:
            return "the best by the estimate"
        if self.stay is None:
            return "every transport was tried and something was gained: from the top"
        if step.transport != self.stay:
            barred = self.stay in self.barred
            return f"{self.stay} {'cannot serve here' if barred else 'made no more progress'}"
        if self.gained:
            return "the last attempt brought the file forward"
        return _AGAIN.get(self.last.failure, f"attempt {self.idle[self.stay] + 1} of {BUDGET}")

    def _ordered(self) -> list[Step]:
        return sorted(self.plan.steps, key=lambda step: not math.isfinite(step.estimate.seconds))

    def _spent(self, step: Step) -> bool:
        name = step.transport
        if (
            name in self.barred
            or self.corrupt[name] >= INTEGRITY_BUDGET
            or self.lies[name] >= LIE_BUDGET
            or self.idle[name] >= BUDGET
        ):
            return True
        return not self.heard and self.unheard >= UNHEARD_SHARE and self._unheard_by(name)

    def _unheard_by(self, name: str) -> bool:
        """Tell whether this transport has had its share of a silent node, and another has not."""
        if self.idle[name] < UNHEARD_SHARE:
            return False
        others = {step.transport for step in self.plan.steps} - self.barred - {name}
        return any(self.idle[other] < UNHEARD_SHARE for other in others)

    def _listen(self, attempt: Attempt) -> None:
        if attempt.gained > 0 or attempt.bytes_sent > 0 or attempt.failure == "integrity":
            self.heard = True
            self.unheard = 0
        elif attempt.failure == "transient":
            self.unheard += 1

    def _turn(self) -> None:
        """Begin a new round where this one is used up and has brought something."""
        steps = self._ordered()
        if not self.progress or any(not self._spent(step) for step in steps if step.transport == self.stay):
            return
        hopeful = [step for step in steps if math.isfinite(step.estimate.seconds)]
        if any(not self._spent(step) for step in hopeful):
            return
        if not any(step.transport not in self.barred for step in hopeful) and any(
            not self._spent(step) for step in steps
        ):
            return
        self.idle.clear()
        self.lies.clear()
        self.progress = False
        self.stay = None


def _ended(why: str, attempts: Sequence[Attempt]) -> str:
    counts = Counter(attempt.transport for attempt in attempts)
    errors = {attempt.transport: attempt.error or "bytes are missing" for attempt in attempts}
    tried = "; ".join(f"{name} x{count}: {errors[name]}" for name, count in counts.items())
    return f"{why} ({tried})" if tried else why


def _late(deadline: float, missing: int, attempts: Sequence[Attempt]) -> str:
    return _ended(f"the deadline of {deadline:g} s leaves no time, {missing} B missing", attempts)
