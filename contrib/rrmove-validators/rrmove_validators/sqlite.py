"""SQLite: what is in the write-ahead log belongs to the database, and the database has to be whole."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

MAGIC = b"SQLite format 3\0"
PATIENCE = 5.0  # s that a writer has to finish
SHOWN = 3  # complaints of integrity_check that are passed on


def is_database(path: Path) -> bool:
    """Tell by its first bytes."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def checkpoint(path: Path) -> str | None:
    """Bring the log into the database, or roll a journal back; nothing where there is neither.

    A file that is copied without its log lacks what was written last. Gives a reason where the
    database is in use, so that it cannot be brought into one file.
    """
    log, journal = Path(f"{path}-wal"), Path(f"{path}-journal")
    if not _held(log) and not _held(journal):
        return None
    try:
        with closing(_connect(path, "mode=rw")) as database:
            database.execute("PRAGMA schema_version").fetchone()  # reading rolls back what was left half done
            busy, _, _ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        return f"its write-ahead log or journal cannot be brought in: {error}"
    if busy or _held(log) or _held(journal):
        return "it is in use: let the program that writes to it end, or send a copy (`sqlite3 FILE '.backup COPY'`)"
    return None


def judge(path: Path) -> str | None:
    """Have SQLite check the file's integrity, as it is on the disk and by itself."""
    if _held(Path(f"{path}-wal")):
        return "it has been written to meanwhile: its write-ahead log is not empty"
    try:
        with closing(_connect(path, "mode=ro&immutable=1")) as database:
            complaints = [row[0] for row in database.execute("PRAGMA integrity_check(10)")]
    except sqlite3.Error as error:
        return f"it does not open: {error}"
    if complaints == ["ok"]:
        return None
    return f"integrity_check says: {'; '.join(map(str, complaints[:SHOWN]))}"


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(bytes(path.absolute()))}?{mode}", uri=True, timeout=PATIENCE)


def _held(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
