"""What happened before, per node and transport: a small SQLite file that may always be missing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar, cast

from rrmove.knowledge import Knowledge, Life
from rrmove.model import Attempt, FailureKind
from rrmove.probe import Facts
from rrmove.ssh.addresses import Answered

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

T = TypeVar("T")

_DAY = 86400.0
# Rented nodes keep their name and change their link when they are rented anew, which happens
# within days: after a week an observation counts half, after a month a sixteenth.
HALF_LIFE = 7 * _DAY
# A node keeps its image, and with it its tools and ports, for as long as it is rented, a day at
# the least; what turns out wrong earlier is forgotten by the move that finds out.
FACTS_AGE = _DAY
# What answered is tried first for as long; where it does no more, that costs a quarter of a second.
ADDRESS_AGE = HALF_LIFE
# A shorter run measures the login: at the field notes' 16 Mbit/s, 8 MiB take 4 s, a cold
# connection 0.3 to 1.3 s (ssh over 0 to 80 ms).
_RATE_BYTES = 8 << 20
# Losses that come this much rarer than the short lives among them are accidents and no rule: one
# loss after 3 s in an hour of moving does not make a link on which 3 s is all there is.
_RARE = 8.0
# Of the lives of lost connections, the one that three in four outlive: the field notes' links end
# after 4 to 8 s, and what is planned for 6 s fails half the time.
_QUANTILE = 0.25
_KEPT = 500  # rows a node; at ten moves a day more than the half-life lets count
_SHOWN = 20  # predictions in Knowledge.history
# A record takes 3 ms and a reading of 500 rows 5 (measured on 2 busy cores, ext4): whoever waits
# this long waits for something that hangs.
_PATIENCE = 2.0
_VERSION = 1
_SCHEMA = """
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, node TEXT NOT NULL, transport TEXT NOT NULL, started REAL NOT NULL,
    seconds REAL NOT NULL, size INTEGER NOT NULL, bytes_sent INTEGER NOT NULL,
    gained INTEGER NOT NULL, error TEXT, failure TEXT, predicted REAL, rtt REAL,
    limited INTEGER NOT NULL);
CREATE INDEX attempts_by_node ON attempts (node);
CREATE TABLE lives (
    id INTEGER PRIMARY KEY, node TEXT NOT NULL, ended REAL NOT NULL, seconds REAL NOT NULL,
    carried INTEGER NOT NULL);
CREATE INDEX lives_by_node ON lives (node);
CREATE TABLE facts (node TEXT PRIMARY KEY, taken REAL NOT NULL, answers TEXT NOT NULL);
"""
# Came later, and is made when it is first needed: a file that has it is used by an older rrmove as well.
_ADDRESSES = """CREATE TABLE IF NOT EXISTS addresses (
    node TEXT PRIMARY KEY, host TEXT NOT NULL, address TEXT NOT NULL, port INTEGER NOT NULL,
    seconds REAL NOT NULL, taken REAL NOT NULL)"""
_COLUMNS = "node, transport, started, seconds, size, bytes_sent, gained, error, failure, predicted, rtt, limited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """One attempt of a former move: `size` in bytes, `predicted` and `rtt` in seconds."""

    node: str
    attempt: Attempt
    size: int
    predicted: float | None = None
    rtt: float | None = None
    limited: bool = False


def default_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Give where the experience is kept: $XDG_STATE_HOME, or ~/.local/state."""
    state = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home(), ".local/state")
    return Path(state, "rrmove", "experience.sqlite3")


class Experience:
    """What former moves taught, kept in one file, which several processes may use at once.

    `path` None is the default place. The file is made when there is something to write. Nothing
    here raises because of it: a broken one is set aside under another name, one that cannot be
    used is ignored, and `problem` says what was the matter.

    Calls block for a few milliseconds; each has a connection of its own, so that any thread may.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = default_path() if path is None else path
        self.problem: str | None = None

    def record(  # noqa: PLR0913 - what a move knows of an attempt, by name
        self,
        node: str,
        attempt: Attempt,
        *,
        size: int,
        predicted: float | None = None,
        rtt: float | None = None,
        lives: Sequence[Life] = (),
        limited: bool = False,
    ) -> None:
        """Add an attempt and the connections that were lost in it; a repeat adds it again.

        `size` is the file's, in bytes; `predicted` and `rtt` are seconds. `limited` says that a
        rate limit was on: then it teaches nothing about the rate.
        """
        ended = attempt.started + attempt.seconds

        def write(db: sqlite3.Connection) -> None:
            values = (
                *(node, attempt.transport, attempt.started, attempt.seconds, size),
                *(attempt.bytes_sent, attempt.gained, attempt.error, attempt.failure),
                *(predicted, rtt, int(limited)),
            )
            marks = ", ".join("?" * len(values))
            db.execute(f"INSERT INTO attempts ({_COLUMNS}) VALUES ({marks})", values)  # noqa: S608
            db.executemany(
                "INSERT INTO lives (node, ended, seconds, carried) VALUES (?, ?, ?, ?)",
                [(node, ended, life.seconds, life.carried) for life in lives],
            )
            for table in ("attempts", "lives"):
                db.execute(
                    f"DELETE FROM {table} WHERE node = ? AND id <="  # noqa: S608 - a name of ours
                    f" (SELECT id FROM {table} WHERE node = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
                    (node, node, _KEPT),
                )

        self._use(write, None, write=True)

    def knowledge(self, node: str, now: float) -> Knowledge:
        """Say what is known of a node at `now`, in seconds since the epoch; may be empty."""

        def read(db: sqlite3.Connection) -> tuple[tuple[Past, ...], list[tuple[float, Life]]]:
            rows = db.execute(
                "SELECT ended, seconds, carried FROM lives WHERE node = ? ORDER BY ended DESC",
                (node,),
            )
            lives = [(ended, Life(seconds, carried)) for ended, seconds, carried in rows]
            return _pasts(db, node, _KEPT), lives

        nothing: tuple[tuple[Past, ...], list[tuple[float, Life]]] = ((), [])
        pasts, lives = self._use(read, nothing)
        return learned(pasts, lives, now)

    def uplink(self, now: float, transports: Collection[str]) -> float | None:
        """Give the best rate, in bytes a second, that these transports have reached to any node; None without any."""
        known: dict[str, list[Past]] = {}
        for past in self.history(limit=_KEPT):
            if past.attempt.transport in transports:
                known.setdefault(past.node, []).append(past)
        rates = [rate for pasts in known.values() for rate in learned(pasts, (), now).rates.values()]
        return max(rates, default=None)

    def history(self, node: str | None = None, limit: int = 50) -> tuple[Past, ...]:
        """Give the last attempts, newest first: of one node, or of all where it is None."""
        return self._use(lambda db: _pasts(db, node, limit), ())

    def remember_facts(self, node_key: str, facts: Facts) -> None:
        """Keep a node's facts, in place of those that were kept before."""
        row = (node_key, facts.taken, json.dumps(dict(facts.answers)))
        self._use(
            lambda db: db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", row),
            None,
            write=True,
        )

    def known_facts(self, node_key: str, now: float, max_age: float = FACTS_AGE) -> Facts | None:
        """Give a node's facts where they are at most `max_age` seconds old, else None."""

        def read(db: sqlite3.Connection) -> Facts | None:
            query = "SELECT taken, answers FROM facts WHERE node = ?"
            row = db.execute(query, (node_key,)).fetchone()
            # Facts from the future come of a clock that was set back: their age is unknown.
            if row is None or not 0 <= now - row[0] <= max_age:
                return None
            answers = cast("dict[str, str]", json.loads(row[1]))
            return Facts(MappingProxyType(answers), row[0])

        return self._use(read, None)

    def forget_facts(self, node_key: str) -> None:
        """Drop a node's facts; a repeat does nothing."""
        self._use(
            lambda db: db.execute("DELETE FROM facts WHERE node = ?", (node_key,)),
            None,
            write=True,
        )

    def remember_address(self, node: str, answered: Answered, now: float) -> None:
        """Keep where a node let us in, in place of what was kept before."""
        row = (node, answered.host, answered.address, answered.port, answered.seconds, now)

        def write(db: sqlite3.Connection) -> None:
            db.execute(_ADDRESSES)
            db.execute("INSERT OR REPLACE INTO addresses VALUES (?, ?, ?, ?, ?, ?)", row)

        self._use(write, None, write=True)

    def last_address(self, node: str, now: float, max_age: float = ADDRESS_AGE) -> Answered | None:
        """Give where a node let us in last, where that is at most `max_age` seconds ago, else None."""

        def read(db: sqlite3.Connection) -> Answered | None:
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'addresses'").fetchone() is None:
                return None
            query = "SELECT host, address, port, seconds, taken FROM addresses WHERE node = ?"
            row = db.execute(query, (node,)).fetchone()
            return None if row is None or not 0 <= now - row[4] <= max_age else Answered(*row[:4])

        return self._use(read, None)

    def _use(self, work: Callable[[sqlite3.Connection], T], fallback: T, *, write: bool = False) -> T:
        import sqlite3

        if not write and not self.path.exists():
            return fallback
        for _ in range(3):  # again where a broken file was set aside, by us or by another process
            # Looked at before it is opened: what comes in its place meanwhile is not the broken one.
            inode = self._inode()
            try:
                with self._connected() as db:
                    _prepare(db)
                    with db:
                        if write:
                            # At once, so that two writers queue up instead of failing halfway.
                            db.execute("BEGIN IMMEDIATE")
                        return work(db)
            except (sqlite3.Error, OSError, ValueError) as error:
                if not self._set_aside(error, inode):
                    self.problem = f"{self.path} is not used: {error}"
                    return fallback
        return fallback

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        import sqlite3

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)) as db:
            yield db

    def _inode(self) -> int | None:
        try:
            return self.path.stat().st_ino
        except OSError:
            return None

    def _set_aside(self, error: Exception, inode: int | None) -> bool:
        """Rename a file that is no sound database; tells whether it is worth trying again."""
        import sqlite3

        broken = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
        if code not in broken:
            return False
        aside = self.path.with_name(f"{self.path.name}.broken")
        try:
            with self.path.open("r+b") as file:
                # Whoever finds the same file broken waits here, and then sees that it is gone.
                fcntl.flock(file, fcntl.LOCK_EX)
                if inode is not None and self._inode() == inode:
                    for suffix in ("-wal", "-shm"):
                        self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
                    self.path.replace(aside)
                    self.problem = f"{self.path} was broken ({error}); it is kept as {aside.name}"
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def learned(pasts: Sequence[Past], lives: Sequence[tuple[float, Life]], now: float) -> Knowledge:
    """Draw from former attempts, and lives with when they ended, what is to be expected; pure.

    Everything counts by its age (HALF_LIFE). A rate is the bytes gained over the seconds they
    took, so that it predicts seconds; attempts under 8 MiB or with a rate limit say nothing of it.
    A life is the one that three in four lost connections outlive, unless losses are so rare
    that they are no rule: then it is the mean between two losses.
    """
    gained: dict[str, float] = {}
    took: dict[str, float] = {}
    tried: dict[str, float] = {}
    good: dict[str, float] = {}
    for past in pasts:
        attempt, weight = past.attempt, _weight(past.attempt.started, now)
        name = attempt.transport
        tried[name] = tried.get(name, 0.0) + weight
        good[name] = good.get(name, 0.0) + weight * (attempt.error is None)
        if attempt.gained >= _RATE_BYTES and attempt.seconds > 0 and not past.limited:
            gained[name] = gained.get(name, 0.0) + weight * attempt.gained
            took[name] = took.get(name, 0.0) + weight * attempt.seconds
    weights = [_weight(ended, now) for ended, _ in lives]
    seconds = sum(_weight(p.attempt.started, now) * p.attempt.seconds for p in pasts)
    carried = sum(_weight(p.attempt.started, now) * p.attempt.bytes_sent for p in pasts)
    newest = sorted(pasts, key=lambda past: past.attempt.started, reverse=True)
    return Knowledge(
        rates=MappingProxyType({name: gained[name] / took[name] for name in gained if took[name]}),
        life_seconds=_life([life.seconds for _, life in lives], weights, seconds),
        life_bytes=_life([life.carried for _, life in lives], weights, carried),
        success=MappingProxyType({name: good[name] / tried[name] for name in tried if tried[name]}),
        rtt=next((past.rtt for past in newest if past.rtt is not None), None),
        samples=len(pasts),
        history=tuple(
            (past.attempt.transport, past.predicted, past.attempt.seconds)
            for past in newest
            if past.predicted is not None and past.attempt.error is None
        )[:_SHOWN],
    )


def _weight(then: float, now: float) -> float:
    return cast("float", 0.5 ** (max(0.0, now - then) / HALF_LIFE))


def _life(values: Sequence[float], weights: Sequence[float], exposure: float) -> float | None:
    total = sum(weights)
    if not total:
        return None
    below = 0.0
    short = 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        short = float(value)
        below += weight
        if below >= _QUANTILE * total:
            break
    mean = exposure / total
    return mean if mean > _RARE * short else short


def _prepare(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == _VERSION:
        return
    if version:
        raise ValueError(f"its schema is {version}, this rrmove knows {_VERSION}")
    db.execute("BEGIN IMMEDIATE")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not version:  # else another process was quicker
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {_VERSION}")
    db.execute("COMMIT")
    _write_ahead(db)


def _write_ahead(db: sqlite3.Connection) -> None:
    import sqlite3

    # Who reads need not wait for who writes; remembered in the file. The switch needs the file to
    # itself and does not wait for it: where somebody has it open, it stays as it is, and works.
    with contextlib.suppress(sqlite3.OperationalError):
        db.execute("PRAGMA journal_mode = WAL")


def _pasts(db: sqlite3.Connection, node: str | None, limit: int) -> tuple[Past, ...]:
    rows: Iterable[tuple[object, ...]] = db.execute(
        f"SELECT {_COLUMNS} FROM attempts WHERE node = ? OR ? IS NULL"  # noqa: S608
        " ORDER BY started DESC, id DESC LIMIT ?",
        (node, node, limit),
    )
    return tuple(_past(*row) for row in rows)  # type: ignore[arg-type]


def _past(  # noqa: PLR0913, PLR0917 - a row, in the order of _COLUMNS
    node: str,
    transport: str,
    started: float,
    seconds: float,
    size: int,
    bytes_sent: int,
    gained: int,
    error: str | None,
    failure: FailureKind | None,
    predicted: float | None,
    rtt: float | None,
    limited: int,
) -> Past:
    attempt = Attempt(
        transport=transport,
        started=started,
        seconds=seconds,
        bytes_sent=bytes_sent,
        gained=gained,
        error=error,
        failure=failure,
    )
    return Past(node=node, attempt=attempt, size=size, predicted=predicted, rtt=rtt, limited=bool(limited))
