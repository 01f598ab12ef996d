"""Authentication of the embedded session: which keys are tried, in ssh's order; no questions are asked."""

from __future__ import annotations

import base64
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import paramiko
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.transport import ServiceRequestingTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rrmove.errors import RRMoveError
    from rrmove.ssh.settings import LoginSettings

OPENING = 10.0  # s for a channel that was asked for ahead, the authentication before it included


class EagerTransport(ServiceRequestingTransport):
    """A transport that need not wait: service, first key and channel are asked for in one go, two round trips less.

    RFC 4252 (5.3) has messages behind the request that lets us in passed on to the service, so that
    the channel may be asked for ahead. With `eager`, `opening` is the channel on its way once a key
    was sent; without it this is paramiko's own, but for a wait of a tenth of a second.
    """

    eager = False
    opening: Future[paramiko.Channel] | None = None

    def ensure_session(self) -> None:
        """Ask for the authentication service, once; whether it is there shows in the answer to what follows."""
        if isinstance(self.auth_handler, _Answers):
            return
        message = paramiko.Message()
        message.add_byte(bytes([5]))  # SSH_MSG_SERVICE_REQUEST
        message.add_string("ssh-userauth")
        self._send_message(message)  # type: ignore[attr-defined]  # a name that its typing leaves out
        self.auth_handler: AuthOnlyHandler = _Answers(self)

    def open_ahead(self) -> None:
        """Ask for the channel behind the key that has just been sent."""
        if not self.eager or self.opening is not None:
            return
        opening: Future[paramiko.Channel] = Future()
        self.opening = opening

        def run() -> None:
            try:
                opening.set_result(self.open_session(timeout=OPENING))
            except (paramiko.SSHException, OSError, EOFError) as error:
                opening.set_exception(error)

        threading.Thread(target=run, name="open-ahead", daemon=True).start()


class _Answers(AuthOnlyHandler):
    """paramiko's own, whose event is made after the request has left: an answer could come before it."""

    def send_auth_request(self, username: str, method: str, finish_message: Any = None) -> Any:
        self._answered = threading.Event()
        return super().send_auth_request(username, method, finish_message or _nothing_more)

    def wait_for_response(self, event: threading.Event) -> Any:
        cast("EagerTransport", self.transport).open_ahead()
        return super().wait_for_response(event)

    @property
    def auth_event(self) -> threading.Event | None:
        return getattr(self, "_answered", None)

    @auth_event.setter
    def auth_event(self, _event: threading.Event | None) -> None:
        pass


def _nothing_more(_message: paramiko.Message) -> None:
    """Add nothing: "none" has no further fields, which paramiko 5.1 forgets."""


@dataclass(slots=True)
class Authentication:
    """One login's authentication, with keys only: nobody is there to be asked for a password."""

    transport: EagerTransport
    settings: LoginSettings
    explain: Callable[[str], RRMoveError]  # words in the manner of ssh's to the error that they mean
    complaints: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Try the keys in ssh's order. Raises Fatal where none opens."""
        try:
            for what, key in self._keys():
                if self._opens(what, key):
                    return
            if self._opens("none", None):  # some servers know their users by other means, as Tailscale's
                return
        except (paramiko.SSHException, OSError, EOFError) as error:
            # Too many keys, or the link: only the server could tell.
            if not self.transport.is_active():
                gone = f"Connection closed by {self.settings.host} port {self.settings.port}: {error}"
                raise self.explain(gone) from error
            self.complaints.append(str(error))
        raise self.explain(f"Permission denied (publickey): {'; '.join(self.complaints) or 'no keys'}")

    def _opens(self, what: str, key: paramiko.PKey | None) -> bool:
        user = self.settings.user
        try:
            further = self.transport.auth_none(user) if key is None else self.transport.auth_publickey(user, key)
        except paramiko.BadAuthenticationType as error:
            self.complaints.append(f"{what}: the node wants {', '.join(error.allowed_types)}")
            return False
        except paramiko.AuthenticationException as error:
            if not self.transport.is_active():
                raise
            self.complaints.append(f"{what}: {error}")
            # The channel that was asked for behind this key was refused with it: it is asked for anew once we are in.
            self.transport.eager, self.transport.opening = False, None
            return False
        if further:
            self.complaints.append(f"{what}: accepted, but the node wants {', '.join(further)} besides")
        return not further

    def _keys(self) -> Iterator[tuple[str, paramiko.PKey]]:
        """Give the named key files first, then the agent's keys, then ssh's default files."""
        settings = self.settings
        files = {path: self._from_file(path) for path in settings.identities}
        named = {path: key for path, key in files.items() if path in settings.named}
        seen = set[bytes]()

        def fresh(key: paramiko.PKey) -> bool:
            known = key.asbytes() in seen
            seen.add(key.asbytes())
            return not known

        for path, key in named.items():
            if key is not None and fresh(key):
                yield str(path), key
        public = {blob for path in settings.identities if (blob := _public_blob(path)) is not None}
        for key in self._from_agent():
            if (not settings.identities_only or key.asbytes() in public) and fresh(key):
                yield "the ssh-agent's key", key
        for path, key in files.items():
            if key is not None and fresh(key):
                yield str(path), key

    def _from_file(self, path: Path) -> paramiko.PKey | None:
        if not path.is_file():
            if path in self.settings.named:
                self.complaints.append(f"{path}: no such file")
            return None
        try:
            key: paramiko.PKey = paramiko.PKey.from_path(path)
        except OSError as error:
            self.complaints.append(f"{path}: {error.strerror or error}")
        except (ValueError, TypeError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
            # An encrypted key is of use only through an agent: there is nobody to type its passphrase.
            self.complaints.append(f"{path}: {error}")
        else:
            return key
        return None

    def _from_agent(self) -> Iterator[paramiko.PKey]:
        if not self.settings.use_agent or not os.environ.get("SSH_AUTH_SOCK"):
            return
        try:
            agent = paramiko.Agent()
        except (paramiko.SSHException, OSError):
            return  # none answers: the files may do
        try:
            yield from agent.get_keys()
        finally:
            agent.close()


def _public_blob(path: Path) -> bytes | None:
    try:
        return base64.b64decode(Path(f"{path}.pub").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
