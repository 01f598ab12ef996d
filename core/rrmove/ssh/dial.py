"""Dial: race the connects to the addresses of one SSH server, in the manner of RFC 8305; also a program for `ssh`.

    python -I -S dial.py [-4|-6] [--report] [--head-start SECONDS] [not:]HOST,PORT ...

As a ProxyCommand with ProxyUseFdpass it hands the connection that won over to `ssh`, which goes on as if it had made it
itself. Standard library only: as a program it has to be there within 20 ms. With `--report` it says on stderr who won
and what became of the others, one line each, the fields between tabs.

An address has won when the SSH server there has said its first word: a bare connect may be that of a box in between.
That word is looked at and left where it is; lines that some servers say before it are passed over.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import sys
import threading
import time
from collections import deque

TYPE_CHECKING = False  # `typing` is not loaded for it
if TYPE_CHECKING:
    from typing import Any, TypeAlias

STAGGER = 0.25  # s until the next address is tried as well; RFC 8305's Connection Attempt Delay
RESOLUTION = 0.05  # s that an address waits for the name before it to be resolved; RFC 8305's Resolution Delay
PATIENCE = 10.0  # s for each address; what `ssh` is given, too
AGAIN = 0.02  # s between two looks at a first word that has come in part
LONGEST = 8192  # bytes that may come before an SSH server's first word
SAYS = "rrmove-dial"  # begins a line of the report

Place = tuple[str, int]  # host and port, as they were configured
Where: TypeAlias = "tuple[Any, ...]"  # a socket address: number and port come first


class Won:
    """The connection that won: its socket, its place, the number that it led to, and what the others did.

    `rtt` are the seconds of TCP's handshake, `seconds` those until the server's first word.
    """

    __slots__ = ("address", "place", "rtt", "seconds", "sock", "tried")

    def __init__(  # noqa: PLR0913, PLR0917  a dataclass would be 10 ms late
        self, sock: socket.socket, place: Place, address: str, rtt: float, seconds: float, tried: dict[str, str]
    ) -> None:
        self.sock, self.place, self.address, self.tried = sock, place, address, tried
        self.rtt, self.seconds = rtt, seconds


class UnansweredError(OSError):
    """No address answered; `tried` says what each did."""

    def __init__(self, tried: dict[str, str]) -> None:
        super().__init__("; ".join(f"{place}: {what}" for place, what in tried.items()) or "no address is left to try")
        self.tried = tried


class _Attempt:
    """One connect under way."""

    __slots__ = ("address", "begun", "connected", "look", "place", "port", "rank", "sock", "words")

    def __init__(self, sock: socket.socket, rank: int, place: Place, where: Where, begun: float) -> None:
        self.sock, self.rank, self.place, self.begun = sock, rank, place, begun
        self.address, self.port = where[0], where[1]
        self.connected: float | None = None
        self.look: float | None = None
        self.words = b""


class _Race:
    """The state of one race; `run()` is called once."""

    def __init__(self, places: list[Place], shut: set[Place], family: int, head_start: float, patience: float) -> None:
        self.places, self.shut, self.family, self.head_start, self.patience = places, shut, family, head_start, patience
        self.selector = selectors.DefaultSelector()
        self.waker, self.woken = socket.socketpair()
        self.inbox: deque[tuple[int, list[tuple[int, Where]], str]] = deque()
        self.names: set[int] = set()  # ranks that are being resolved
        self.waiting: list[tuple[int, int, int, Where]] = []  # rank, order in it, family, socket address
        self.running: dict[socket.socket, _Attempt] = {}
        self.seen: set[tuple[str, int]] = set()
        self.tried: dict[str, str] = {}
        self.begun = time.monotonic()
        self.next = self.begun
        self.last_family = 0

    def run(self) -> Won:
        won: Won | None = None
        self.selector.register(self.woken, selectors.EVENT_READ)
        try:
            for rank, place in enumerate(self.places):
                self._resolve(rank, place)
            while won is None:
                self._take_in()
                self._start_more()
                if not self.running and not self.waiting and not self.names:
                    raise UnansweredError(self.tried)
                won = self._turn()
            now = time.monotonic()
            for attempt in self.running.values():
                if attempt.sock is not won.sock:
                    self._note(attempt.address, attempt.port, f"no answer within {now - attempt.begun:.2f} s")
            return won
        finally:
            for sock in list(self.running):
                if won is None or sock is not won.sock:
                    sock.close()
            self.selector.close()
            self.waker.close()
            self.woken.close()

    # Names

    def _resolve(self, rank: int, place: Place) -> None:
        host, port = place
        try:
            found = socket.getaddrinfo(host, port, self.family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
        except OSError:
            self.names.add(rank)
            threading.Thread(target=self._look_up, args=(rank, place), daemon=True).start()
            return
        self._queue(rank, [(family, where) for family, _, _, _, where in found])

    def _look_up(self, rank: int, place: Place) -> None:
        found, trouble = [], ""
        try:
            found = socket.getaddrinfo(*place, self.family, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            trouble = f"cannot be resolved ({getattr(error, 'strerror', None) or error})"
        self.inbox.append((rank, [(family, where) for family, _, _, _, where in found], trouble))
        try:
            self.waker.send(b"n")
        except OSError:
            return  # the race is over

    def _take_in(self) -> None:
        while self.inbox:
            rank, found, trouble = self.inbox.popleft()
            self.names.discard(rank)
            if trouble:
                self._note(*self.places[rank], trouble)
            self._queue(rank, found)

    def _queue(self, rank: int, found: list[tuple[int, Where]]) -> None:
        for order, (family, where) in enumerate(found):
            place = (where[0], where[1])
            if place not in self.seen and place not in self.shut:
                self.seen.add(place)
                self.waiting.append((rank, order, family, where))

    # Connects

    def _start_more(self) -> None:
        now = time.monotonic()
        while self.waiting and now >= self.next:
            best = min(rank for rank, _, _, _ in self.waiting)
            if now < self.begun + RESOLUTION and any(rank < best for rank in self.names):
                self.next = min(self.begun + RESOLUTION, now + 0.005)
                return
            # The families take turns within what one name means.
            chosen = min(
                (each for each in self.waiting if each[0] == best),
                key=lambda each: (each[2] == self.last_family, each[1]),
            )
            self.waiting.remove(chosen)
            first = not self.tried and not self.running
            if self._start(chosen[0], chosen[2], chosen[3], now):
                self.next = now + (self.head_start if first else STAGGER)

    def _start(self, rank: int, family: int, where: Where, now: float) -> bool:
        self.last_family = family
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            self._note(where[0], where[1], _words(error.errno))
            return False
        sock.setblocking(False)
        trouble = sock.connect_ex(where)
        if trouble not in {0, errno.EINPROGRESS}:
            sock.close()
            self._note(where[0], where[1], _words(trouble))
            return False
        self.running[sock] = _Attempt(sock, rank, self.places[rank], (where[0], where[1]), now)
        self.selector.register(sock, selectors.EVENT_WRITE)
        return True

    def _turn(self) -> Won | None:
        now = time.monotonic()
        due = [attempt.begun + self.patience for attempt in self.running.values()]
        due += [attempt.look for attempt in self.running.values() if attempt.look is not None]
        due += [self.next] if self.waiting else []
        for key, _ in self.selector.select(max(0.0, min(due) - now) if due else None):
            if key.fileobj is self.woken:
                self.woken.recv(64)
                continue
            attempt = self.running[key.fileobj]  # type: ignore[index]
            if attempt.connected is None:
                self._connected(attempt)
            elif (won := self._heard(attempt)) is not None:
                return won
        now = time.monotonic()
        for attempt in list(self.running.values()):
            if attempt.look is not None and now >= attempt.look:
                attempt.look = None
                self.selector.register(attempt.sock, selectors.EVENT_READ)
            if now >= attempt.begun + self.patience:
                silent = "Connection timed out" if attempt.connected is None else "connected, but no SSH server answers"
                self._fail(attempt, silent)
        return None

    def _connected(self, attempt: _Attempt) -> None:
        trouble = attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if trouble:
            self._fail(attempt, _words(trouble))
            return
        attempt.connected = time.monotonic()
        self.selector.modify(attempt.sock, selectors.EVENT_READ)

    def _heard(self, attempt: _Attempt) -> Won | None:
        try:
            said = attempt.sock.recv(LONGEST, socket.MSG_PEEK)
        except OSError as error:
            self._fail(attempt, _words(error.errno))
            return None
        if said.startswith(b"SSH-"):
            now, connected = time.monotonic(), attempt.connected or attempt.begun
            self.tried[_name(attempt.address, attempt.port)] = f"answers after {(now - attempt.begun) * 1000:.0f} ms"
            won = (attempt.sock, attempt.place, attempt.address, connected - attempt.begun, now - attempt.begun)
            return Won(*won, self.tried)
        cut = (said.find(b"\nSSH-") + 1) or (said.rfind(b"\n") + 1)
        attempt.words += said[:cut]
        if not said:
            told = attempt.words.decode("ascii", "replace").strip()[:80]
            why = f": {told!r}" if told else ""
            self._fail(attempt, f"Connection closed before the SSH server's first word{why}")
        elif len(attempt.words) + len(said) >= LONGEST:
            self._fail(attempt, "it is no SSH server")
        elif cut:  # lines that may come before it (RFC 4253, 4.2), which nobody misses
            attempt.sock.recv(cut)
        else:  # what was looked at is still there: to wait for more would turn at once, again and again
            self.selector.unregister(attempt.sock)
            attempt.look = time.monotonic() + AGAIN
        return None

    def _fail(self, attempt: _Attempt, what: str) -> None:
        if attempt.look is None:
            self.selector.unregister(attempt.sock)
        del self.running[attempt.sock]
        attempt.sock.close()
        self._note(attempt.address, attempt.port, what)
        self.next = time.monotonic()  # nobody waits any longer for the next

    def _note(self, host: str, port: int, what: str) -> None:
        self.tried[_name(host, port)] = what


def dial(
    places: list[Place],
    *,
    shut: set[Place] | None = None,
    family: int = 0,
    head_start: float = STAGGER,
    patience: float = PATIENCE,
) -> Won:
    """Connect to all places, best first, each begun a quarter of a second after the one before, or when that failed.

    Gives the first that an SSH server answers at; the others are closed. `head_start` are the seconds that the first
    one has to itself; `shut` are places, by number, that are left alone. Blocks. Raises UnansweredError where
    none answers within `patience` seconds of its own beginning.
    """
    return _Race(places, shut or set(), family, head_start, patience).run()


def _name(host: str, port: int) -> str:
    return f"{host} port {port}"


def _words(number: int | None) -> str:
    return os.strerror(number) if number else "the connection failed"


def main(words: list[str]) -> int:
    """Dial, and hand the connection over on stdout."""
    family, report, head_start = 0, False, STAGGER
    places: list[Place] = []
    shut: set[Place] = set()
    given = iter(words)
    for word in given:
        if word == "--report":
            report = True
        elif word == "--head-start":
            head_start = float(next(given))
        elif word in {"-4", "-6"}:
            family = socket.AF_INET if word == "-4" else socket.AF_INET6
        else:
            host, _, port = word.removeprefix("not:").rpartition(",")
            if word.startswith("not:"):
                shut.add((host, int(port)))
            else:
                places.append((host, int(port)))
    try:
        won = dial(places, shut=shut, family=family, head_start=head_start)
    except UnansweredError as error:
        if report:
            _tell(error.tried)
        sys.stderr.write(f"connect to host {error}\n")
        return 1
    if report:
        _tell(won.tried, ("won", won.place[0], str(won.place[1]), won.address, f"{won.rtt:.6f}", f"{won.seconds:.6f}"))
    won.sock.setblocking(True)
    with socket.socket(fileno=1) as out:
        socket.send_fds(out, [b"\0"], [won.sock.fileno()])
        out.detach()
    return 0


def _tell(tried: dict[str, str], *lines: tuple[str, ...]) -> None:
    told = [*(("tried", place, what) for place, what in tried.items()), *lines]
    sys.stderr.write("".join("\t".join((SAYS, *line)) + "\n" for line in told))


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # threads that still look a name up hold up nobody
