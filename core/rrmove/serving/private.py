"""The files that nobody else may read: the token, the certificate with its key, the state file."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from typing import TYPE_CHECKING

from rrmove.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")  # what RFC 6750 lets a bearer token have
_MOST = 1 << 20  # bytes; no such file is larger


def state_directory() -> Path:
    """Give the directory for what a program keeps about itself, made where it is missing (mode 0700)."""
    from platformdirs import user_state_path

    folder = user_state_path("rrmove")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def read_private(path: Path, what: str) -> bytes:
    """Read a file that only its owner can read. Raises UsageError for one that others could read or change."""
    try:
        with path.open("rb") as file:
            seen = os.fstat(file.fileno())
            if not stat.S_ISREG(seen.st_mode):
                raise UsageError(f"the {what} {str(path)!r} is no regular file", remedy="Name another one")
            if seen.st_mode & 0o077 or seen.st_uid not in {0, os.geteuid()}:
                raise UsageError(
                    f"the {what} {str(path)!r} can be read or changed by others",
                    remedy=f"Make a new one, since that one may be known: `rm {path}`, and start again",
                )
            return file.read(_MOST)
    except OSError as error:
        raise UsageError(
            f"the {what} {str(path)!r} cannot be read: {error.strerror}",
            remedy="Mend that, or name another file",
        ) from error


def ensure_private(path: Path, what: str, make: Callable[[], bytes]) -> bytes:
    """Read a private file, which is made first (mode 0600) where there is none. Raises UsageError.

    Two servers that start at once get the same one.
    """
    if not os.path.lexists(path):
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}~")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(draft, make())
            try:
                with contextlib.suppress(FileExistsError):  # the other server was quicker: its file counts
                    os.link(draft, path)
            finally:
                draft.unlink()
        except OSError as error:
            raise UsageError(
                f"the {what} {str(path)!r} cannot be made: {error.strerror}",
                remedy="Mend that, or name another file",
            ) from error
    return read_private(path, what)


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class Token:
    """The token that requests have to carry; its text is nowhere kept, and never shown."""

    def __init__(self, text: str) -> None:
        self._digest = hashlib.sha256(text.encode()).digest()

    @classmethod
    def of(cls, path: Path) -> Token:
        """Read the token file, or make it. Raises UsageError."""
        data = ensure_private(path, "token file", lambda: secrets.token_urlsafe(32).encode() + b"\n")
        text = data.decode("utf-8", "replace").strip()
        if not _TOKEN.fullmatch(text):
            raise UsageError(
                f"the token file {str(path)!r} holds no token",
                remedy=f"It has one line of 16 to 512 letters, digits and ._~+/=-. To have one made: `rm {path}`",
            )
        return cls(text)

    def opens(self, authorization: str | None) -> bool:
        """Tell whether a request's Authorization header carries this token; the time taken tells nothing."""
        scheme, _, given = (authorization or "").strip().partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        return hmac.compare_digest(digest, self._digest) and scheme.lower() == "bearer"


class StateFile:
    """What a running server says about itself to those who may log in as its user."""

    def __init__(self, folder: Path, fields: Mapping[str, object]) -> None:
        self.path = folder / f"serve-{fields['port']}.json"
        self.fields = dict(fields)
        self._data = json.dumps(self.fields).encode("ascii") + b"\n"

    def write(self) -> None:
        """Put it in place, over one that a crash left behind. Raises UsageError."""
        draft = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}~")
        try:
            _write(draft, self._data)
            draft.replace(self.path)
        except OSError as error:
            raise UsageError(
                f"the state file {str(self.path)!r} cannot be written: {error.strerror}",
                remedy="Make its directory writable, or set $XDG_STATE_HOME",
            ) from error

    def remove(self) -> None:
        """Take it away, unless another server has put its own there."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.read_bytes() == self._data:
                self.path.unlink()
