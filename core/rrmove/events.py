"""What happens during a move, as frozen values for whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rrmove.model import Attempt, Outcome, Plan


@dataclass(frozen=True, slots=True)
class Reached:
    """Of several addresses of a node, `address` is used from now on; None: one that was used or tried is left out.

    `tried` says of each that was tried what it did.
    """

    node: str
    address: str | None
    tried: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Probed:
    """The node was looked at; `facts` are printable, `cached` says that they were known before."""

    node: str
    facts: Mapping[str, str]
    seconds: float
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """The transports were ranked."""

    node: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """A transport begins; `missing` bytes are not on the node yet, of `size`."""

    node: str
    transport: str
    missing: int
    size: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """`durable` bytes of `size` (0: not known) are written on the node; never goes back within an attempt."""

    node: str
    durable: int
    size: int


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """A connection died after `age` seconds and `carried` bytes; the move goes on."""

    node: str
    transport: str
    reason: str
    age: float
    carried: int


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """A transport gave up."""

    node: str
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A transport had left processes of its own behind; they were ended. `processes` are their command lines."""

    node: str
    transport: str
    processes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unshared:
    """The inventory's limits hold for this process alone, as it cannot agree with others, because of `reason`."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing is done for `seconds`, because of `reason`; `giver` is the sibling that is waited for, if it is one."""

    node: str
    seconds: float
    reason: str
    giver: str | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """Every byte of the part file was read back on the node and matches the source."""

    node: str
    digest: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The file stands under its name; `destination` is absolute."""

    node: str
    destination: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The move is over, well or not; always the last event of a request."""

    node: str
    outcome: Outcome


Event = (
    Reached
    | Probed
    | Planned
    | AttemptStarted
    | Progressed
    | ConnectionLost
    | AttemptFailed
    | LeftBehind
    | Unshared
    | Waiting
    | Verified
    | Committed
    | Finished
)
Emit = Callable[[Event], None]
