"""Claims: where the processes of this user tell each other what they want of the limits they share (SQLite)."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rrmove.experience import default_path
from rrmove.limits.division import Claim

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Mapping

# A process that lives looks four times a second; one that is held up longer than this is taken for
# gone (chosen: between the second that a busy machine may hold one up, and the five that a share
# may lie idle). One that has ended is seen at once, by its number and its start.
AGE = 3.0
_FORGOTTEN = 3600.0  # s after which what another boot, or another machine on the same disk, has left is removed
_BUSY = 0.5  # s to wait for another process's turn, which takes a millisecond
_VERSION = 1
_SCHEMA = """
CREATE TABLE claimants (
    owner TEXT PRIMARY KEY, boot TEXT NOT NULL, space TEXT NOT NULL, pid INTEGER NOT NULL, born TEXT NOT NULL,
    beat REAL NOT NULL, written REAL NOT NULL, body TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Claimant:
    """What one process says of the limits it knows, in bytes a second, and of the moves that it has at work."""

    limits: Mapping[str, float]
    claims: tuple[Claim, ...]


class Claims:
    """All claimants of this user on this machine, in one file; each process writes its own row.

    A row is a lease: it holds as long as its process beats, which means that it looks here. Every
    call blocks for about a millisecond. Raises sqlite3.Error, OSError or ValueError where the
    file cannot be used; the next call tries anew. Not for several threads.

    The clock is CLOCK_MONOTONIC, which all processes of a machine share, and which neither jumps
    nor goes on while the machine sleeps: leases sleep as their owners do.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = default_path().with_name("limits.sqlite3") if path is None else path
        self._clock = clock
        self._me = _Self()
        self._db: sqlite3.Connection | None = None
        self._inode: int | None = None

    def turn(self, decide: Callable[[list[Claimant]], Claimant], at_once: Callable[[Claimant], None]) -> None:
        """Look at what others claim and decide what one gets, while nobody else does.

        `at_once` is told of it before others can see it: what it gives up has to be given up by then.
        """
        with self._used() as db:
            now, me = self._clock(), self._me
            others = []
            for owner, boot, space, pid, born, beat, written, body in db.execute("SELECT * FROM claimants").fetchall():
                if boot != me.boot:
                    gone = not 0 <= time.time() - written < _FORGOTTEN
                else:
                    # Numbers of processes mean something in one namespace only; a beat from the future, nothing.
                    gone = not -AGE < now - beat < AGE or (space == me.space and not _lives(pid, born))
                if gone:
                    db.execute("DELETE FROM claimants WHERE owner = ?", (owner,))
                elif boot == me.boot and owner != me.owner:
                    others.append(_read(body))
            mine = decide(others)
            row = (me.owner, me.boot, me.space, me.pid, me.born, now, time.time(), _written(mine))
            db.execute("INSERT OR REPLACE INTO claimants VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            at_once(mine)

    def leave(self) -> None:
        """Take one's own row away; a repeat does nothing."""
        if self._db is not None:
            with self._used() as db:
                db.execute("DELETE FROM claimants WHERE owner = ?", (self._me.owner,))

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextlib.contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        """Give the file, open, with the turn on it; what is no sound database is replaced: a lease lives seconds."""
        import sqlite3

        try:
            db = self._opened()
            with db:
                db.execute("BEGIN IMMEDIATE")
                yield db
        except (sqlite3.Error, OSError, ValueError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
            busy = code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
            if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} and self._seen() == self._inode:
                for suffix in ("", "-wal", "-shm"):
                    self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            if not busy:
                self.close()
            raise

    def _opened(self) -> sqlite3.Connection:
        import sqlite3

        if self._db is not None and self._seen() == self._inode:
            return self._db
        self.close()  # somebody has put another file in its place
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Made here and not by SQLite, so that it is known which file was opened.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._inode = self._seen()
        db = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None)
        try:
            _prepare(db)
        except BaseException:
            db.close()
            raise
        self._db = db
        return db

    def _seen(self) -> int | None:
        try:
            return self.path.stat().st_ino
        except OSError:
            return None


class _Self:
    """This process, as others can tell it from all that are and were."""

    def __init__(self) -> None:
        self.owner, self.pid = secrets.token_hex(8), os.getpid()
        self.born = _born(self.pid) or ""
        self.boot = _line("/proc/sys/kernel/random/boot_id")
        try:
            self.space = str(Path("/proc/self/ns/pid").readlink())
        except OSError:
            self.space = ""


def _lives(pid: int, born: str) -> bool:
    """Tell whether a process still lives; true where nobody can say."""
    return not born or not Path("/proc/self/stat").exists() or _born(pid) == born


def _born(pid: int) -> str | None:
    """Give when a process was started, as the kernel counts; None where there is none, or it has ended."""
    fields = _line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in {"Z", "X"} else None


def _line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _written(mine: Claimant) -> str:
    claims = [
        (claim.scopes, claim.weight, None if math.isinf(claim.demand) else claim.demand, claim.granted)
        for claim in mine.claims
    ]
    return json.dumps({"limits": dict(mine.limits), "claims": claims})


def _read(body: str) -> Claimant:
    said = json.loads(body)
    return Claimant(
        {str(scope): float(rate) for scope, rate in said["limits"].items()},
        tuple(
            Claim(tuple(scopes), float(weight), math.inf if demand is None else float(demand), float(granted))
            for scopes, weight, demand, granted in said["claims"]
        ),
    )


def _prepare(db: sqlite3.Connection) -> None:
    import sqlite3

    db.execute("PRAGMA synchronous = OFF")  # a lease that a power cut takes away is no loss
    (version,) = cast("tuple[int]", db.execute("PRAGMA user_version").fetchone())
    if version == _VERSION:
        return
    if version:
        raise ValueError(f"its schema is {version}, this rrmove knows {_VERSION}")
    db.execute("BEGIN IMMEDIATE")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not version:  # else another process was quicker
        db.execute(_SCHEMA)
        db.execute(f"PRAGMA user_version = {_VERSION}")
    db.execute("COMMIT")
    # Commits are cheaper so. Where the switch finds somebody at work it is left out: all works without, too.
    with contextlib.suppress(sqlite3.OperationalError):
        db.execute("PRAGMA journal_mode = WAL")


__all__ = ["AGE", "Claimant", "Claims"]
