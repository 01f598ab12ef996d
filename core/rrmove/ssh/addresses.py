"""Addresses: where a node may be reached, in which order that is tried, and where it answered last."""

from __future__ import annotations

import re
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rrmove.model import KINDS
from rrmove.ssh.config import check_host, destination, direct, effective_sync
from rrmove.ssh.dial import SAYS, STAGGER, UnansweredError, dial
from rrmove.ssh.failures import HostKeyError, NoLogin, NotTheNode
from rrmove.ssh.hostkeys import known_kinds, names_of
from rrmove.ssh.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rrmove.errors import RRMoveError
    from rrmove.model import Address, Node
    from rrmove.ssh.config import SSHConfig
    from rrmove.ssh.dial import Place

SLOW = 2.0  # s of head start at most, for one that is known to answer slowly
PROGRAM = Path(__file__).with_name("dial.py")
OTHER_KEY = "shows another host key: it is not this node"
_SAFE = re.compile(r"[^\w@%+=:,./-]")
# Where ssh_config has these, what `ssh` connects to is its own affair.
_OWN_WAY = ("bindaddress", "bindinterface")


@dataclass(frozen=True, slots=True)
class Answered:
    """Where a node answered: the configured host, the number that it led to, the port.

    `seconds` passed until the SSH server's first word.
    """

    host: str
    address: str
    port: int
    seconds: float

    @property
    def shown(self) -> str:
        """As people read it."""
        return f"{self.address} port {self.port}"


@dataclass(frozen=True, slots=True)
class Course:
    """What one connect tries: places, best first, and what is left alone; `strict` checks host keys without mercy."""

    places: tuple[Place, ...]
    shut: frozenset[Place]
    family: int
    head_start: float
    strict: bool

    def flags(self, *, report: bool) -> tuple[str, ...]:
        """Give the flags with which `ssh` has the race run and takes over the connection that won."""
        words = [sys.executable, "-I", "-S", str(PROGRAM), "--head-start", f"{self.head_start:.3f}"]
        words += (
            [{socket.AF_INET: "-4", socket.AF_INET6: "-6"}[socket.AddressFamily(self.family)]] if self.family else []
        )
        words += ["--report"] if report else []
        words += [f"not:{host},{port}" for host, port in sorted(self.shut)]
        words += [f"{host},{port}" for host, port in self.places]
        # For a shell, and before that for ssh, which expands %; no quotes: rsync has its own way with them in --rsh.
        command = " ".join(_SAFE.sub(r"\\\g<0>", word).replace("%", "%%") for word in words)
        strict = ("-o", "StrictHostKeyChecking=yes") if self.strict else ()
        return ("-o", f"ProxyCommand={command}", "-o", "ProxyUseFdpass=yes", *strict)


class Addresses:
    """A node's addresses, and what has been learned of them; shared by all connections of a session.

    `last` is where the node answered before, `keep` is told where it does now; both only count where there are
    several. All calls may come from any thread.

    Where ssh_config has a proxy or a jump host, that is the way, and nothing here applies. An address besides
    ssh_config's own is used under a host key that is known only, whatever StrictHostKeyChecking says.
    """

    def __init__(
        self,
        node: Node,
        *,
        last: Answered | None = None,
        keep: Callable[[Answered], None] | None = None,
        ssh: str = "ssh",
    ) -> None:
        self.node, self._ssh, self._keep = node, ssh, keep
        self._further: list[Address] = []
        self._config: SSHConfig | None = None
        self._asked = False
        self._last = last
        self._kept: Answered | None = None
        self._excluded: set[Place] = set()
        self._wide = False  # whether the node's own name has turned out to mean several addresses
        self.answered: Answered | None = None  # the latest connect
        self.used: Answered | None = None  # the latest login
        self.tried: dict[str, str] = {}
        self._watchers: list[Callable[[], None]] = []
        self._guard = threading.Lock()
        self.add(node.addresses)

    def add(self, more: Iterable[Address]) -> bool:
        """Take in further addresses; tells whether there was a new one."""
        with self._guard:
            own = {destination(self.node), self.node.ssh.host, self.node.name}
            known = {(each.host, each.port) for each in self._further}
            new = [a for a in more if (a.host not in own or a.port is not None) and (a.host, a.port) not in known]
            self._further += new
            return bool(new)

    @property
    def several(self) -> bool:
        """Whether there may be more than one, as far as is known."""
        return bool(self._further) or self._wide

    def watch(self, changed: Callable[[], None]) -> None:
        """Have somebody told whenever another address is used, or one is left out; at once where that has happened."""
        self._watchers.append(changed)
        if self.used is not None or self._excluded:
            changed()

    def learn(self, config: SSHConfig | None) -> None:
        """Take note of what `ssh -G` said."""
        with self._guard:
            self._config, self._asked = config, True

    # What to try

    def course(self) -> Course | None:
        """Give what the next connect tries; None where only ssh_config's own way is there. Blocks the first time.

        Raises UsageError where ssh_config is broken.
        """
        if not self.several:
            return None
        if not self._asked:
            self.learn(effective_sync(self.node, self._ssh))
        with self._guard:
            config = self._config
            if config is None or not direct(config) or not _free(config):
                return None
            own = (check_host(config.hostname), config.port)
            accepting, known = _host_keys(self.node, config)
            if accepting and not known:
                return None  # the first key that is seen would be taken for the node's
            places = self._ordered(own)
            if not places or (places == [own] and not self._wide and not self._excluded):
                return None
            return Course(tuple(places), frozenset(self._excluded), _family(config), self._head_start(), accepting)

    def _ordered(self, own: Place) -> list[Place]:
        """Give all places that are left, where it answered last first, then by kind."""
        kinds = {each.host: each.kind for each in self.node.addresses}
        ranked = [(KINDS.index(kinds.get(own[0], "public")), own)]
        ranked += [(KINDS.index(each.kind), (check_host(each.host), each.port or own[1])) for each in self._further]
        places = [place for _, place in sorted(ranked, key=lambda each: each[0]) if place not in self._excluded]
        last = self.used or self._last
        if last is not None and (last.host, last.port) in places and (last.address, last.port) not in self._excluded:
            places.insert(0, (last.address, last.port))
        return list(dict.fromkeys(places))

    def others(self, *, last: bool = False) -> tuple[tuple[str, int | None], ...]:
        """Give the node's addresses besides the one in use, the nearest first: host, and SSH's port where it is known.

        While nobody has answered, that is ssh_config's own; with `last` the one that was in use last. Machines that
        showed another key are left out.
        """
        with self._guard:
            former = self.used or self.answered or (self._last if last else None)
            taken = {former.host, former.address} if former is not None else set()
            ranked: list[tuple[int, str, int | None]] = [
                (KINDS.index(each.kind), each.host, each.port)
                for each in self._further
                if each.host not in {destination(self.node), self.node.ssh.host, self.node.name}
            ]
            if self._config is not None and direct(self._config):
                kinds = {each.host: each.kind for each in self.node.addresses}
                own = self._config.hostname
                if former is None:
                    taken = {own}
                ranked.insert(0, (KINDS.index(kinds.get(own, "public")), own, self._config.port))
            wrong = {host for host, _ in self._excluded}
            return tuple(
                (host, port)
                for _, host, port in sorted(ranked, key=lambda each: each[0])
                if host not in taken and host not in wrong
            )

    def _head_start(self) -> float:
        last = self.used or self._last
        return min(SLOW, max(STAGGER, 2 * last.seconds)) if last is not None else STAGGER

    def widen(self) -> None:
        """Note that the node's own name means several addresses."""
        self._wide = True

    def dial(self, course: Course) -> tuple[socket.socket, Dialed]:
        """Connect in this process; gives the socket that won, which nothing was read from. Raises NoLogin."""
        try:
            won = dial(list(course.places), shut=set(course.shut), family=course.family, head_start=course.head_start)
        except UnansweredError as error:
            raise self.unanswered(error.tried) from error
        return won.sock, self.dialed(won.place, won.address, won.seconds, won.tried)

    # What came of it

    def dialed(self, place: Place, address: str, seconds: float, tried: Mapping[str, str]) -> Dialed:
        """Note who won a race."""
        with self._guard:
            host = place[0]
            for former in (self.used, self._last):
                if former is not None and place == (former.address, former.port):
                    host = former.host
            self.answered = Answered(host, address, place[1], seconds)
            self._note(tried)
            return Dialed(self, self.answered)

    def unanswered(self, tried: Mapping[str, str]) -> NoLogin:
        """Note that nobody answered, and say so."""
        with self._guard:
            self._note(tried)
            each = dict.fromkeys([*tried, *(name for name, what in self.tried.items() if what == OTHER_KEY)])
            told = "; ".join(f"{name}: {self.tried[name]}" for name in each)
        silent = all("timed out" in what or "route" in what or "unreachable" in what for what in tried.values())
        what = "the node does not answer" if silent else "no SSH server answers"
        return NoLogin(
            f"{what} at any of its addresses" if len(each) > 1 else what,
            node=self.node.name,
            tried=f"ssh {destination(self.node)}: {told}",
            remedy=f"Check that it is up, its addresses, and firewalls on the way: `ssh -v {destination(self.node)}`",
        )

    def confirm(self, answered: Answered) -> None:
        """Note that the node let us in there: its host key was checked."""
        with self._guard:
            changed = self.used is None or (self.used.address, self.used.port) != (answered.address, answered.port)
            self.used = answered
            keep = self._keep if self.several and (changed or self._kept is None) else None
            self._kept = answered
        if keep is not None:
            keep(answered)
        if changed:
            self._tell()

    def judged(self, error: RRMoveError, answered: Answered) -> RRMoveError:
        """Say what a login's end means: one that failed by its host key was not this node's, where others are left."""
        if not isinstance(error, HostKeyError):
            return error
        with self._guard:
            self._excluded |= {(answered.host, answered.port), (answered.address, answered.port)}
            self.tried[answered.shown] = OTHER_KEY
            if self.answered is not None and self.answered.shown == answered.shown:
                self.answered = None
            for former in (self.used, self._last):
                if former is not None and (former.address, former.port) == (answered.address, answered.port):
                    self.used = self._last = None
        self._tell()
        return NotTheNode(
            f"the machine at {answered.shown} {OTHER_KEY}",
            node=error.node,
            tried=error.tried,
            remedy=f"Mend the node's addresses. {error.remedy}",
        )

    def _note(self, tried: Mapping[str, str]) -> None:
        self.tried |= {name: what for name, what in tried.items() if self.tried.get(name) != OTHER_KEY}

    def _tell(self) -> None:
        for changed in list(self._watchers):
            changed()

    # For the reader's eye

    @property
    def told(self) -> dict[str, str]:
        """What each address did that was tried; of the one in use, that it is."""
        with self._guard:
            told = dict(self.tried)
            if self.used is not None:
                told[self.used.shown] = f"used, {told.get(self.used.shown, 'answers')}"
            return told


@dataclass(frozen=True, slots=True)
class Dialed:
    """One connection that won a race, for whoever learns what becomes of it."""

    addresses: Addresses
    answered: Answered

    def arrived(self) -> None:
        """Note that the login went through."""
        self.addresses.confirm(self.answered)

    def judged(self, error: RRMoveError) -> RRMoveError:
        """Say what the end of the connection means."""
        return self.addresses.judged(error, self.answered)


@dataclass(frozen=True, slots=True)
class Report:
    """What `dial.py` told about a race on ssh's stderr: who won, if anyone did, and what each did."""

    won: tuple[Place, str, float, float] | None  # place, number, seconds of the handshake, seconds to the first word
    tried: Mapping[str, str]


def read_report(words: str) -> Report | None:
    """Find the report among what ssh said; None where there is none. It is whole once somebody has won."""
    won, tried = None, {}
    for line in words.splitlines():
        match line.split("\t"):
            case [says, "tried", place, what] if says == SAYS:
                tried[place] = what
            case [says, "won", host, port, address, rtt, seconds] if says == SAYS:
                won = ((host, int(port)), address, float(rtt), float(seconds))
    return Report(won, tried) if won or tried else None


def _free(config: SSHConfig) -> bool:
    """Tell whether ssh_config leaves open what to connect to, and whether its checks hold for any address."""
    given = [value for key in _OWN_WAY for value in config.options.get(key, ()) if value not in {"", "none"}]
    local = config.options.get("nohostauthenticationforlocalhost", ("no",))[0]
    return not given and local in {"no", "false"}


def _family(config: SSHConfig) -> int:
    word = config.options.get("addressfamily", ("any",))[0]
    return {"inet": socket.AF_INET, "inet6": socket.AF_INET6}.get(word, 0)


def _host_keys(node: Node, config: SSHConfig) -> tuple[bool, bool]:
    """Tell whether unknown host keys are taken, and whether one of the node's is known already."""
    settings = read_settings(node, config.options, config.user)
    if not settings.accepts_new:
        return False, True
    names = names_of(settings.host, settings.port, settings.host_key_alias)
    return True, bool(known_kinds(settings.known_hosts, names))


__all__ = ["Addresses", "Answered", "Course", "Dialed", "Report", "read_report"]
