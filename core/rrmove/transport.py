"""The Transport protocol: what a plugin is, what it is given, and what it owes.

A transport fills the part file of a job, and that is all it does. It never verifies, never
renames, never says that a file has been delivered: the core does that, from what it reads back
on the node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rrmove.events import Event
    from rrmove.manifest import Manifest, Range
    from rrmove.model import Request, Resume, Route
    from rrmove.oneshot.endpoint import Endpoint
    from rrmove.probe import Facts, Probe
    from rrmove.session import Lane, Session

API_VERSION = 1  # raised when a plugin written for the last one would no longer work


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the core has to know of a transport in order to rank it.

    resume   "exact" continues at the byte or chunk, "rescan" has to reread what is there,
             "none" starts over
    route    "ssh"; "direct", we reach the node's data port; "reverse", the node reaches a port of
             ours; "swarm"; "web", it fetches from a server: a URL's, a mirror's, or ours
             where there is no other; "sibling", from a node that gets the same file
    fallback the route that it takes where a probe saw `route` shut, None where it has but one
    streams  how many connections it can use at once; 1 where each is bound by one window
    ranges   whether it can send only the missing ranges
    lanes_only  whether it writes to the part file through the lanes' `put` alone; the core then
             need not read again what it has verified already
    overhead bytes on the wire for each byte of the file (base64: 4/3)
    setup    round trips before the first byte of the file can leave, beyond a TCP connect; the
             login's twelve count, since every move begins with one
    ceiling  bytes a second that two cores carry, all connections together, where that is measured
             and other than the route's
    sources  what it can move: "file", a local one; "url", what is behind a `Remote`
    """

    resume: Resume
    route: Route
    streams: int = 1
    ranges: bool = False
    lanes_only: bool = False
    overhead: float = 1.0
    setup: float = 12.0
    fallback: Route | None = None
    ceiling: float | None = None
    sources: tuple[Literal["file", "url"], ...] = ("file",)


class Landing(Protocol):
    """The part file on the node, as far as a transport may touch it."""

    @property
    def part(self) -> str:
        """The part file's absolute path on the node."""
        ...

    async def survey(self) -> tuple[Range, ...]:
        """Read back what the part file holds and answer with the ranges that are missing."""
        ...

    async def check(self, chunks: Sequence[int], lane: Lane | None = None, *, sealed: bool = False) -> tuple[int, ...]:
        """Have the core read back and verify chunks, over the given lane; gives those that are wrong.

        `sealed` says that nobody can write there any more, so that what is right need not be read again before the
        commit; that is believed of our own transports only. Raises IntegrityError when a chunk arrives wrong again
        and again, Fatal when the source has changed, Transient when the part file was taken away.
        """
        ...

    async def held(self) -> int:
        """Ask how many bytes of the part file take room on the node's disk; for progress, not proof."""
        ...

    async def admit(self) -> None:
        """Let the node's data server write into the part file, until the core reads it back.

        For transports that send to `rrmove serve`; what still arrives there afterwards is refused. Raises
        Transient where the part file is not the one that was opened, Unusable where the node has no python3.
        """
        ...

    async def claim(self) -> str:
        """End who else may be writing the part file, and give an identity for a receiver of ours to know it by.

        For transports that start one (`serve_there`). Whoever else has verified the part file has to do so anew.
        Raises what `admit()` does.
        """
        ...

    async def trim(self, size: int) -> None:
        """Cut the part file to `size` bytes; for transports that append."""
        ...


class Limiter(Protocol):
    """The rate limit of a move, shared by everything that sends for it."""

    @property
    def rate(self) -> float | None:
        """Bytes a second that may be used now; None without a limit. It changes where others share the limit.

        A program that limits itself and is run by `run_program()` may be told `ceiling` instead.
        """
        ...

    @property
    def ceiling(self) -> float | None:
        """Bytes a second that `rate` never exceeds; None without a limit."""
        ...

    async def take(self, count: int) -> None:
        """Wait until `count` bytes may leave."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Giver:
    """A sibling that passes the file on: where it listens, and what opens it, for this one file.

    Not all of the file need be there while it is not `whole`. What comes from it has to be compared with the manifest.
    """

    node: str
    host: str
    endpoint: Endpoint
    whole: bool


class Siblings(Protocol):
    """The nodes that get the same file at the same time, as far as this one may pull it from them."""

    def giver(self) -> Giver | None:
        """Say from whom to pull now; to be asked every second or so, and followed.

        None while nobody has anything for this node. Raises Unusable where it should get the file another way.
        """
        ...

    def failed(self, giver: Giver) -> None:
        """Say that nothing can be had from a giver; it is not named again unless it is started anew."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One attempt's work.

    `missing` are the ranges that are not on the node yet, in order; others need not be sent.
    `progress(count)` reports bytes of the file that the node has written, as they become durable
    in the part file; `sent(count)` reports bytes put on the wire; `emit` publishes an event. One
    of the first two has to be heard every few minutes, or the transport is taken for hanging. The
    session is lent for the attempt: afterwards it opens nothing any more. `siblings` are there where
    other nodes get the same file, else None.
    """

    request: Request
    manifest: Manifest
    missing: Sequence[Range]
    facts: Facts
    session: Session
    landing: Landing
    limiter: Limiter
    progress: Callable[[int], None]
    sent: Callable[[int], None]
    emit: Callable[[Event], None]
    siblings: Siblings | None = None


@runtime_checkable
class Transport(Protocol):
    """A way to move bytes; docs/transports.md has the contract on one page.

    An object is made once for each move, in a thread, without arguments. Its attributes are read
    then, and do not change. It may have one more, `settings`: a frozen dataclass whose fields can
    be set by the user; `request.settings.get(ThatClass)` gives the values. And another one, the
    method `suited(request, facts)`, as pure as `refuse`: its Capabilities for this request, where
    they depend on it.

    `refuse` may be called at any time, any number of times, before and between attempts, and for
    requests that are never sent. `send` is called when its turn comes, never twice at a time for
    one request, and as often as its attempts bring the file forward.
    """

    @property
    def name(self) -> str:
        """What it is called; the same as its entry point."""
        ...

    @property
    def api_version(self) -> int:
        """The `API_VERSION` that it was written for."""
        ...

    @property
    def needs(self) -> tuple[Probe[Any], ...]:
        """The probes whose facts it looks at."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What the ranking has to know of it."""
        ...

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Say in a clause why this transport cannot serve here, or answer None.

        Pure and quick: it looks at its arguments, and at which programs this machine has. A fact
        that is None is unknown, and no reason. Raises nothing.
        """
        ...

    async def send(self, job: Job) -> None:
        """Put the job's missing ranges into the part file.

        To return means that all of them are there: the core reads them back, and does not believe
        it. A repeat is given what is missing then, and continues or safely starts over. Raises
        Transient (this one again), Unusable (the next one), Fatal (none helps), and nothing else.
        Cancelled, it lets CancelledError through within seconds, and leaves no process, port or
        temporary behind, on either side. It awaits what takes time, and prints nothing.
        """
        ...
