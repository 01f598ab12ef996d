"""The nouns: frozen values that the whole of rrmove speaks in."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeVar

from rrmove.errors import Fatal, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_Kind = TypeVar("_Kind")

PATIENCE = 300.0  # s; chosen: longer than any node was seen to hash or to be silent in a life of its link
PRIORITY, PRIORITIES = 10, range(1, 101)  # chosen: a tenth of the usual weight at the least, ten times at the most
DATA_PORT = 8780  # the fleet's HTTP data server
TORRENT_PORT = 6881  # BitTorrent's and its DHT's customary port

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


KINDS = ("lan", "public", "tailscale")  # of addresses, the nearest first; Tailscale may lead through a relay


@dataclass(frozen=True, slots=True)
class Address:
    """One way to name a node on a network; `port` is SSH's there, where it is not the node's usual one."""

    host: str
    kind: Literal["lan", "public", "tailscale"] = "public"
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SSHSettings:
    """What to tell `ssh` beyond the node's name; None leaves it to ssh_config.

    `host` is what is given to ssh as destination (default: the node's name), `config` replaces
    the user's ssh_config as `ssh -F` does.
    """

    host: str | None = None
    port: int | None = None
    user: str | None = None
    identity: Path | None = None
    config: Path | None = None


FOR_THIS_MOVE = "given for this move"


@dataclass(frozen=True, slots=True)
class Given:
    """A value that somebody gave to a transport's setting; `origin` says where it stands."""

    transport: str
    key: str
    value: object
    origin: str = FOR_THIS_MOVE

    @property
    def name(self) -> str:
        """What the setting is called after `-o`: TRANSPORT.KEY."""
        return f"{self.transport}.{self.key}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the transports have been told: one value of each class that a transport declares."""

    values: tuple[object, ...] = ()

    def get(self, kind: type[_Kind]) -> _Kind:
        """Give the settings of that class; its defaults where nobody said anything."""
        return next((value for value in self.values if type(value) is kind), None) or kind()


@dataclass(frozen=True, slots=True)
class Ports:
    """The TCP ports of a node that may be open besides SSH; the torrent port is UDP too."""

    data: int = DATA_PORT
    torrent: int = TORRENT_PORT


@dataclass(frozen=True, slots=True)
class Limit:
    """Bytes a second for all that a scope holds together, in all processes of this user on this machine."""

    scope: str
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine that files are moved to.

    `limit_rate` is the node's own, in bytes a second; `limits` are those that it shares with others:
    its provider's, and the machine's; `settings` is what the inventory says to transports, the
    last word on a key holds; `extra` are the keys that nobody here knows.
    """

    name: str
    addresses: tuple[Address, ...] = ()
    ssh: SSHSettings = field(default_factory=SSHSettings)
    provider: str | None = None
    tags: frozenset[str] = frozenset()
    destination: str | None = None
    limit_rate: float | None = None
    limits: tuple[Limit, ...] = ()
    ports: Ports = field(default_factory=Ports)
    settings: tuple[Given, ...] = ()
    extra: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def nearest(self) -> tuple[Address, ...]:
        """Its further addresses, the nearest first."""
        return tuple(sorted(self.addresses, key=lambda each: KINDS.index(each.kind)))

    @property
    def all_limits(self) -> tuple[Limit, ...]:
        """Its own limit, where it has one, and those that it shares."""
        return (*((Limit(f"node {self.name}", self.limit_rate),) if self.limit_rate else ()), *self.limits)

    @property
    def ceiling(self) -> float | None:
        """The lowest of its limits, in bytes a second; None without any."""
        return min((limit.rate for limit in self.all_limits), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A local file as it was when the move was asked for.

    `size` is in bytes, `mtime_ns` in nanoseconds since the epoch; `ctime_ns`, `device` and
    `inode` serve to notice that the file changed under our hands.
    """

    path: Path
    name: str
    size: int
    mode: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> Source:
        """Look at a file, or take a URL. Raises UsageError where it is missing, unreadable or no regular file."""
        if isinstance(path, str) and _SCHEME.match(path) and not Path(path).exists():
            return Remote.at(path)
        path = Path(path)
        try:
            seen = path.stat()
            if stat.S_ISREG(seen.st_mode):
                path.open("rb").close()
        except OSError as error:
            raise UsageError(
                f"cannot read {str(path)!r}: {error.strerror or error}",
                remedy="Check the path and its permissions",
            ) from error
        if stat.S_ISDIR(seen.st_mode):
            raise UsageError(
                f"{str(path)!r} is a directory; only single files can be moved so far",
                remedy="Pack it first, for example with `tar -cf NAME.tar DIRECTORY`",
            )
        if not stat.S_ISREG(seen.st_mode):
            raise UsageError(f"{str(path)!r} is not a regular file")
        return cls(
            path=path,
            name=path.name,
            size=seen.st_size,
            mode=stat.S_IMODE(seen.st_mode),
            mtime_ns=seen.st_mtime_ns,
            ctime_ns=seen.st_ctime_ns,
            device=seen.st_dev,
            inode=seen.st_ino,
        )

    @property
    def shown(self) -> str:
        """The source as people and logs may see it."""
        return str(self.path)

    @property
    def version(self) -> str:
        """What tells this content from others where nobody could hash it; empty where the manifest does."""
        return ""

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open the file for reading and give its descriptor. Raises Fatal where it cannot be read any more."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Fatal(f"cannot read {str(self.path)!r}: {error.strerror}") from error
        try:
            yield fd
        finally:
            os.close(fd)

    def unchanged(self) -> bool:
        """Tell whether the file is still the one that was looked at."""
        try:
            return Source.of(self.path) == self
        except UsageError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote(Source):
    """A file behind an http or https URL.

    `url` may hold secrets and is never shown. The rest is what its server said of it when somebody
    looked: `size` is 0 until then and where `sized` is false, since the server does not say;
    `etag` and `modified` tell the version, and where `named`, no other has the same; `ranges` says
    that parts of it can be had, `digest` is the SHA-256 in hex that the server gives. `beyond` is
    why the node itself cannot reach it, empty where it can; `nonce` is there where two versions
    could not be told apart.
    """

    url: str = field(repr=False)
    sized: bool = False
    etag: str = ""
    modified: str = ""
    named: bool = False
    ranges: bool = False
    digest: str | None = None
    beyond: str = ""
    nonce: str = ""

    @classmethod
    def at(cls, url: str) -> Remote:
        """Take a URL; nobody is asked yet. Raises UsageError where it is none that can be fetched."""
        try:
            parts = urllib.parse.urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"this is no URL that can be fetched: {error}") from error
        if parts.scheme.lower() not in {"http", "https"}:
            raise UsageError(f"{parts.scheme}:// cannot be fetched", remedy="Give an http or https URL")
        if not host or any(ord(char) <= 32 or ord(char) == 127 for char in url):
            raise UsageError("the URL has no host, or has spaces in it", remedy="Write a space in a URL as %20")
        name = urllib.parse.unquote(parts.path.rpartition("/")[2], errors="surrogateescape")
        if not name or name in {".", ".."} or "/" in name or "\0" in name:
            raise UsageError(
                f"{shown_url(url)} names no file", remedy="Give the URL of a file, whose path does not end in a slash"
            )
        return cls(path=Path(name), name=name, url=url, size=0, mode=0o644, mtime_ns=0, ctime_ns=0, device=0, inode=0)

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it: user, password, query."""
        return shown_url(self.url)

    @property
    def resumable(self) -> bool:
        """Whether a part of it can be continued: parts can be had, and never of two versions."""
        return self.sized and self.ranges and self.named

    @property
    def version(self) -> str:
        """The URL and what its server says of the version, hashed: it names the part file."""
        words = "\0".join((self.url, str(self.size), self.etag, self.modified, self.nonce))
        return hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()

    def unchanged(self) -> bool:
        """Tell that nothing is known to have changed: whoever fetches compares each answer's version."""
        return True


def shown_url(url: str) -> str:
    """Give a URL as people and logs may see it: user, password and query may be secret."""
    parts = urllib.parse.urlsplit(url)
    query = "?..." if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for beyond source and target.

    `only` and `without` are transport names; `limit_rate` is in bytes a second; `deadline` in
    seconds from the start; `sha256` the whole file's expected digest in hex; `mirrors` are URLs
    that have this very file too; `priority` weighs this move against others under the same limits;
    `settings` what transports are told for this move; `plugins`
    transports that are not installed: classes, objects, or paths of Python files; `patience` the
    seconds in which a transport has to report a byte or to end; `alone` says that nobody else in
    this program starts processes, so that those which a transport leaves behind can be told and
    ended.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    limit_rate: float | None = None
    deadline: float | None = None
    sha256: str | None = None
    mirrors: tuple[str, ...] = field(default=(), repr=False)
    priority: int = PRIORITY
    settings: tuple[Given, ...] = ()
    plugins: tuple[object, ...] = ()
    patience: float = PATIENCE
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What came of looking for a sibling that passes the file on.

    `giver` is the node that this one was seen to reach, None where there is none: `why` says in a clause what
    was in the way. `remaining` are the seconds until the giver has all of it, `rate` is in bytes a second where the way
    between them is known. `first` says that this node is fed first, so that others can pull from it, `listens` that its
    data port is taken by that.
    """

    giver: str | None = None
    remaining: float = 0.0
    rate: float | None = None
    why: str = ""
    first: bool = False
    listens: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One file to one place on one node.

    `destination` is as the user wrote it: a directory (it ends in `/` or turns out to be one), a
    file, or empty for the node's own default. Relative paths start at the node's home. `settings`
    has what transports are told, checked: `request.settings.get(MySettings)`. `audience` are the nodes
    that get this file from us at the same time, this one included, and share our uplink; `offer` is what siblings
    have for this one, None where nobody has looked.
    """

    source: Source
    node: Node
    destination: str = ""
    options: Options = field(default_factory=Options)
    settings: Settings = field(default_factory=Settings)
    audience: int = 1
    offer: Offer | None = None

    @property
    def shared_limit(self) -> float | None:
        """The least of what is allowed to several moves together, in bytes a second; None without a limit."""
        rates = [limit.rate for limit in self.node.limits]
        return min((rate for rate in (self.options.limit_rate, *rates) if rate is not None), default=None)


Resume = Literal["exact", "rescan", "none"]
Route = Literal["ssh", "direct", "reverse", "swarm", "web", "sibling"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected seconds of a step, and the sum they come from.

    `terms` are (what, seconds) in the order in which they are added; `seconds` is infinite where
    the transport would never finish on this link, and `note` then says why.
    """

    seconds: float
    terms: tuple[tuple[str, float], ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A transport that may be tried, with what it is expected to cost."""

    transport: str
    estimate: Estimate
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A transport that cannot serve, and why."""

    transport: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The ranking: steps from best to last resort, and who was refused."""

    steps: tuple[Step, ...]
    refusals: tuple[Refusal, ...] = ()


FailureKind = Literal["transient", "unusable", "fatal", "integrity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of one run of one transport.

    `started` is in seconds since the epoch, `bytes_sent` what it put on the wire as it reported
    it, `gained` how many bytes of the file are on the node now that were not there before.
    """

    transport: str
    started: float
    seconds: float
    bytes_sent: int
    gained: int
    error: str | None = None
    failure: FailureKind | None = None


@dataclass(frozen=True, slots=True)
class Try:
    """Run this step next, after waiting `after` seconds."""

    step: Step
    after: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Succeed:
    """All bytes are there: verify and commit."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing is left that makes sense."""

    reason: str


Action = Try | Succeed | GiveUp


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a request.

    `digest` is ALGORITHM:HEX of what was verified on the node, None where nothing was committed;
    `verified` says against what: "source" is the local file, "sha256" the digest that was asked
    for, "server-sha256" the one that the server gives, "received" what came over the wire, "length"
    the size that the server told. `unverified` says in a clause what was not. `destination` is the
    absolute path there; `bytes_sent` went over the link in all attempts,
    `bytes_reused` were on the node already.
    """

    request: Request
    plan: Plan
    attempts: tuple[Attempt, ...] = ()
    destination: str | None = None
    digest: str | None = None
    verified: tuple[str, ...] = ()
    unverified: str | None = None
    bytes_sent: int = 0
    bytes_reused: int = 0
    seconds: float = 0.0
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Tell whether the file is on the node under its name, verified."""
        return self.digest is not None and self.error is None
