"""Probe and Facts: what can be asked of a node, and what it answered; and the standard probes.

All of it is pure. `gather()` does the asking. A snippet's answer is read line by line, and only
lines in the form that the snippet prints count: whatever a node's shell start-up says besides is
passed over.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Probe(Generic[T]):
    """One thing to find out about a node.

    `ask` is a POSIX shell snippet run there (stdin empty, at most 3 s and 64 KiB of output, its
    stderr dropped), or None where `gather()` measures from outside and writes the answer itself.
    `parse` is pure: the recorded answer in, the fact out; None means unknown, which is never
    grounds for refusal. It raises nothing. `brief`, where there is one, is asked instead while a
    move waits for the answer: less, and sooner.
    """

    name: str
    ask: str | None
    parse: Callable[[str], T | None]
    brief: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """The recorded answers of one node, and when they were `taken` (seconds since the epoch)."""

    answers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    taken: float = 0.0

    def get(self, probe: Probe[T]) -> T | None:
        """Read one fact; None is unknown. A `parse` that raises leaves it unknown, too."""
        answer = self.answers.get(probe.name)
        if answer is None:
            return None
        try:
            return probe.parse(answer)
        except (Exception, SystemExit):  # noqa: BLE001  a plugin's parser must not stop a move
            return None

    def updated(self, answers: Mapping[str, str], taken: float | None = None) -> Facts:
        """Give these facts with newer answers over them."""
        merged = MappingProxyType({**self.answers, **answers})
        return Facts(merged, self.taken if taken is None else taken)

    def without(self, *probes: Probe[Any]) -> Facts:
        """Give these facts without those that turned out wrong."""
        gone = {probe.name for probe in probes}
        kept = {name: text for name, text in self.answers.items() if name not in gone}
        return Facts(MappingProxyType(kept), self.taken)


# What is installed

# The node's own PATH counts, unextended: `rsync` and its like are started by name over there.
# Presence is told first and costs no process; `listed` ends it, so that a cut answer is not
# mistaken for a bare node. Versions come from all tools at once, each for at most 2 s; where there
# is no `timeout` nobody is asked, and they stay "". 30-60 ms on Debian 12, 2 cores, 8 tools.
_ASK_TOOLS = """\
for tool in python3 rsync aria2c curl wget scp transmission-cli transmission-daemon tailscale \
base64 sha256sum shasum openssl nc socat; do
  command -v "$tool" >/dev/null 2>&1 && echo "have $tool"
done
for place in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh /usr/libexec /usr/lib \
/usr/local/libexec; do
  [ -x "$place/sftp-server" ] && { echo 'have sftp-server'; break; }
done
echo listed
command -v timeout >/dev/null 2>&1 || exit 0
version() {
  name=$1; shift
  command -v "$1" >/dev/null 2>&1 || return 0
  timeout -s KILL 2 "$@" </dev/null 2>&1 |
    { IFS= read -r line; printf 'version %s %.200s\\n' "$name" "$line"; } &
}
version python3 python3 -V
version rsync rsync --version
version aria2c aria2c --version
version curl curl --version
version wget wget --version
version scp ssh -V
version transmission-cli transmission-cli --version
version transmission-daemon transmission-daemon --version
version tailscale tailscale version
version sha256sum sha256sum --version
version openssl openssl version
wait
"""
_TOOL = re.compile(r"[a-z0-9-]+")
_VERSION = re.compile(r"(?<![\w.])(?:[A-Za-z]+_|v)?([0-9]+(?:\.[0-9]+)+\w*)")
_BROKEN = re.compile(r"error|not found|cannot|can't|no such|permission denied", re.IGNORECASE)


def _tools(answer: str) -> Mapping[str, str] | None:
    tools: dict[str, str] = {}
    listed = False
    for line in answer.splitlines():
        word, _, rest = line.partition(" ")
        if line == "listed":
            listed = True
        elif word == "have" and not listed and _TOOL.fullmatch(rest):
            tools.setdefault(rest, "")
        elif word == "version":
            name, _, said = rest.partition(" ")
            found = None if _BROKEN.search(said) else _VERSION.search(said)
            if found and name in tools:
                tools[name] = found[1]
    return MappingProxyType(tools) if listed else None


# What machine it is


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """The machine and who we are on it; "" and None are unknown.

    `kernel` is name and release ("Linux 6.1.0-18-amd64"), `machine` what `uname -m` says, `libc`
    "glibc 2.36" or "musl", `cpus` how many this login may use, `uid` 0 for root.
    """

    os: str = ""
    kernel: str = ""
    machine: str = ""
    hostname: str = ""
    python: str = ""
    libc: str = ""
    shell: str = ""
    cpus: int | None = None
    uid: int | None = None


# `gather()` adds a line `python=` from the agent's greeting: to ask here would start one more
# Python, which takes 10 ms, and more where that is a pyenv shim.
_ASK_SYSTEM = """\
echo "uname=$(uname -snrm)"
echo "uid=$(id -u)"
echo "cpus=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null)"
echo "shell=$SHELL"
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null)
for loader in /lib/ld-musl-*; do [ -z "$libc" ] && [ -e "$loader" ] && libc=musl; done
echo "libc=$libc"
[ -r /etc/os-release ] && . /etc/os-release && echo "os=$PRETTY_NAME"
exit 0
"""


def _system(answer: str) -> System | None:
    said = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    match said.get("uname", "").split():
        case [kernel, hostname, release, machine]:
            pass
        case _:
            return None
    python = _VERSION.search(said.get("python", ""))
    return System(
        os=said.get("os", "").strip() or kernel,
        kernel=f"{kernel} {release}",
        machine=machine,
        hostname=hostname,
        python=python[1] if python else "",
        libc=said.get("libc", "").strip(),
        shell=said.get("shell", "").strip(),
        cpus=_count(said.get("cpus", "")),
        uid=_count(said.get("uid", "")),
    )


def _count(text: str) -> int | None:
    # isdecimal() alone lets through digits of other scripts, and int() refuses very long ones.
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text.strip()) else None


# How it sees us


@dataclass(frozen=True, slots=True)
class Client:
    """Our end of the login as the node sees it, and its own end; None where it does not say.

    Behind a proxy or a jump host `host` is the last machine on the way, not ours.
    """

    host: str
    port: int
    server_host: str | None = None
    server_port: int | None = None


def _client(answer: str) -> Client | None:
    for line in answer.splitlines():
        word, *ends = line.split()[:5] or [""]
        if word != "client" or len(ends) not in {3, 4}:
            continue
        # SSH_CONNECTION: our address and port, its address and port. SSH_CLIENT: without the third.
        host, port, server = _address(ends[0]), _count(ends[1]), _count(ends[-1])
        if host is not None and port is not None:
            return Client(host, port, _address(ends[2]) if ends[3:] else None, server)
    return None


def _address(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None  # sshd says UNKNOWN where the connection is no socket
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


# Where there is room

_ASK_SPACE = """\
room() { [ -d "$2" ] && df -Pk "$2" | { read -r _; IFS= read -r line; echo "room $1 $line"; }; }
room '~' "$HOME"
room /tmp /tmp
room /data /data
exit 0
"""
_ROOM = re.compile(r"room (~|/tmp|/data) .*?\s[0-9]+\s+-?[0-9]+\s+(-?[0-9]{1,18})\s+(?:[0-9]+%|-)\s")


def _space(answer: str) -> Mapping[str, int] | None:
    found = filter(None, map(_ROOM.match, answer.splitlines()))
    space = {match[1]: max(0, int(match[2])) * _KIBI for match in found}
    return MappingProxyType(space) or None


# What is measured from our side

PortState = Literal["open", "refused", "filtered", "unreachable"]
DHTState = Literal["answers", "silent", "refused"]


def _ports(answer: str) -> Mapping[int, PortState] | None:
    ports: dict[int, PortState] = {}
    for line in answer.splitlines():
        port, _, state = line.partition(" ")
        number = _count(port)
        if number is not None and state in get_args(PortState):
            ports[number] = cast("PortState", state)
    return MappingProxyType(ports) or None


def _places(answer: str) -> Mapping[int, Mapping[str, PortState]] | None:
    places: dict[int, dict[str, PortState]] = {}
    for line in answer.splitlines():
        port, _, rest = line.partition(" ")
        state, _, host = rest.partition(" ")
        number = _count(port)
        if number is not None and host and state in get_args(PortState):
            places.setdefault(number, {})[host] = cast("PortState", state)
    return MappingProxyType({port: MappingProxyType(places[port]) for port in places}) or None


def _seconds(answer: str) -> float | None:
    found = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", answer.strip())
    return float(found[0]) if found else None


def _dht(answer: str) -> DHTState | None:
    word = answer.strip()
    return cast("DHTState", word) if word in get_args(DHTState) else None


TOOLS: Probe[Mapping[str, str]] = Probe(
    "tools", _ASK_TOOLS, _tools, brief=_ASK_TOOLS.partition("\ncommand -v timeout")[0]
)
"""Tool to version, "" where it did not say. A tool that is not in the mapping is not there.

In brief nobody is asked for a version: those eleven programs take a tenth of a second on two busy cores.
"""
SYSTEM: Probe[System] = Probe("system", _ASK_SYSTEM, _system)
CLIENT: Probe[Client] = Probe("client", 'echo "client ${SSH_CONNECTION:-${SSH_CLIENT:-}}"', _client)
SPACE: Probe[Mapping[str, int]] = Probe("space", _ASK_SPACE, _space)
"""Free bytes for this login in "~", "/tmp" and "/data", where they exist."""
RTT: Probe[float] = Probe("rtt", None, _seconds)
"""Seconds there and back."""
PORTS: Probe[Mapping[int, PortState]] = Probe("ports", None, _ports)
"""TCP ports as seen from here; one that is not in the mapping was not looked at.

Of several addresses it is the best that any of them showed; PLACES has which.
"""
PLACES: Probe[Mapping[int, Mapping[str, PortState]]] = Probe("places", None, _places)
"""The same ports at each of a node's several addresses, by host: the one that SSH uses first, then the nearest.

Unknown where there is one address. At all but SSH's it is not certain that the machine there is the node.
"""
REACH: Probe[bool] = Probe(
    "reach",
    None,
    {"open": True, "refused": False, "filtered": False, "unreachable": False}.get,
)
"""Whether the node can reach us by TCP, at the address under which it sees us."""
DHT: Probe[DHTState] = Probe("dht", None, _dht)
"""What a DHT ping to the node's torrent port brought: an answer, silence, or a refusal."""
CLEAN: Probe[bool] = Probe("clean", None, {"yes": True, "no": False}.get)
"""Whether all 256 byte values survive the channel, both ways."""

ADDRESS: Probe[str] = Probe("address", None, lambda answer: answer.strip() or None)
"""Of a node with several addresses: which one is used, and what the others did that were tried."""

STANDARD: tuple[Probe[Any], ...] = (
    TOOLS, SYSTEM, CLIENT, SPACE, RTT, PORTS, PLACES, REACH, DHT, CLEAN,
)  # fmt: skip


# For the reader's eye


_KIBI = 1024


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < _KIBI:
            return f"{count:.4g} {unit}"
        count /= _KIBI
    return f"{count:.4g} TiB"


def _about(system: System) -> str:
    parts = [system.os, system.kernel, system.machine, system.libc]
    parts += [f"Python {system.python}"] if system.python else []
    parts += [f"{system.cpus} CPUs"] if system.cpus else []
    parts += ["root"] if system.uid == 0 else []
    return ", ".join(filter(None, parts))


def port_in_words(facts: Facts, port: int, *, everywhere: bool = True) -> str:
    """Say how a port was seen and, of several addresses, where: "filtered at 203.0.113.9 and 100.64.0.7".

    With `everywhere` false only the best that was seen; nothing is said of where, if that is nowhere open.
    """
    best = (facts.get(PORTS) or {}).get(port, "not seen")
    places = (facts.get(PLACES) or {}).get(port, {})
    if not places or (not everywhere and best in {"filtered", "unreachable"}):
        return best
    states = [state for state in get_args(PortState) if state in places.values() and (everywhere or state == best)]
    hosts = {state: [host for host in places if places[host] == state] for state in states}
    return " and ".join(f"{state} at {' and '.join(hosts[state])}" for state in states) or best


_WORDS: tuple[tuple[Probe[Any], Callable[[Any], str]], ...] = (
    (SYSTEM, _about),
    (TOOLS, lambda tools: ", ".join(f"{name} {tools[name]}".strip() for name in tools) or "none"),
    (SPACE, lambda space: ", ".join(f"{place} {_size(space[place])}" for place in space)),
    (ADDRESS, str),
    (RTT, lambda seconds: f"{seconds * 1000:.1f} ms"),
    (CLIENT, lambda client: f"sees us at {client.host}"),
    (PORTS, str),  # in describe(), which knows where
    (REACH, lambda reach: "can reach us" if reach else "cannot reach us"),
    (DHT, str),
    (CLEAN, lambda clean: "yes" if clean else "no"),
)


def describe(facts: Facts) -> Mapping[str, str]:
    """Put what is known into words, by probe name.

    What is unknown is left out. Of a plugin's probe the answer's first line is shown. Everything
    is printable: a node cannot speak to the terminal through it.
    """
    words: dict[str, str] = {}
    for probe, say in _WORDS:
        fact = facts.get(probe)
        if fact is not None:
            words[probe.name] = say(fact)
    if PORTS.name in words:
        seen = sorted(facts.get(PORTS) or ())
        words[PORTS.name] = ", ".join(f"{port} {port_in_words(facts, port, everywhere=False)}" for port in seen)
    ours = {probe.name for probe, _ in _WORDS} | {PLACES.name}
    for name in sorted(facts.answers.keys() - ours):
        words[name] = (facts.answers[name].strip().splitlines() or [""])[0][:80]
    return {name: "".join(c if c.isprintable() else "?" for c in words[name]) for name in words}
