"""What a node and its link suffer from: the Profile, and the named ones of the cluster that taught us."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_RATE = re.compile(r"(\d+)([kmg])bit")
_UNIT = {"k": 10**3, "m": 10**6, "g": 10**9}
_RESERVED = frozenset({"client", "switch"})


def bits_per_second(rate: str) -> int:
    """Read a rate as `tc` writes it ("160mbit"). ValueError if it is none."""
    match = _RATE.fullmatch(rate)
    if not match:
        message = f"not a rate: {rate!r} (write 160mbit, 1gbit, 500kbit)"
        raise ValueError(message)
    return int(match[1]) * _UNIT[match[2]]


@dataclass(frozen=True, slots=True)
class Profile:
    """Describe one node. Every fault is off unless it is asked for; a pair is a range that is drawn from evenly."""

    name: str
    rate: str | None = None
    """Link rate, each way, as `tc` writes it."""
    rtt_ms: float = 0
    """Round trip that the cable adds."""
    queue_bytes: int | None = None
    """What may wait for the line before the tail drops. None: one bandwidth-delay product, at least 512 KiB."""
    loss: float = 0.0
    """Fraction of packets (not of offloaded frames) lost, each way, independently."""
    flips: tuple[int, int] | None = None
    """A TCP port, and bytes: each time that so many have gone there, one of their bits is flipped on the way, and the
    checksum is right all the same, as after a proxy with faulty memory."""
    reset_seconds: tuple[float, float] | None = None
    """An SSH connection of an age drawn from this range gets RST, both ends of it."""
    reset_bytes: int | None = None
    """An SSH connection that has carried more, both ways together, gets RST at the client's end only: the node's end
    lives on, unaware, as it does behind a NAT that forgot the flow."""
    hang_seconds: tuple[float, float] | None = None
    """From that age on the packets of an SSH connection vanish, both ways, without a word."""
    connects_per_minute: int | None = None
    """SSH connections that one source may open a minute; further ones get RST (as sshd's PerSourcePenalties does)."""
    open_ports: tuple[int, ...] = ()
    """TCP and UDP ports let in besides 22."""
    closed: Literal["drop", "reject"] = "drop"
    """How every other port answers: not at all, or with RST."""
    routes_back: bool = True
    """Whether the node may open connections of its own."""
    without: tuple[str, ...] = ()
    """Programs that the node lacks. "python3" stands for every python3.x."""
    data_mb: int | None = None
    """Size of the node's /data. None: as large as the machine's disk."""
    max_sessions: int = 10
    """sshd's MaxSessions (its own default)."""
    max_startups: str = "100:30:200"
    """sshd's MaxStartups; its own default is 10:30:100."""
    jump: str | None = None
    """The node through which alone this one can be reached (ssh_config's ProxyJump)."""
    seven_bits: bool = False
    """sshd runs every command behind a filter that makes question marks of all bytes above 127, both ways."""
    down: bool = False
    """No sshd: port 22 answers with RST."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built. ValueError."""
        if not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            message = f"not a node name: {self.name!r}"
            raise ValueError(message)
        if self.rate is not None:
            bits_per_second(self.rate)
        if self.closed not in {"drop", "reject"}:
            message = f"closed ports drop or reject, not {self.closed!r}"
            raise ValueError(message)
        if self.reset_seconds and self.hang_seconds:
            message = f"{self.name}: a connection is reset at an age or falls silent at one, not both"
            raise ValueError(message)
        if not 0 <= self.loss < 1:
            message = f"{self.name}: loss is a fraction, not {self.loss}"
            raise ValueError(message)

    @property
    def bits(self) -> int | None:
        """The rate in bits a second."""
        return bits_per_second(self.rate) if self.rate else None

    @property
    def needs_cable(self) -> bool:
        """Whether the link has what a veth pair cannot give: a round trip, loss, or bits that are flipped."""
        return bool(self.rtt_ms or self.loss or self.flips)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Make a profile of what `to_json` gave (or what somebody wrote by hand). TypeError if a field is unknown."""
        known = {field.name for field in fields(cls)}
        if unknown := values.keys() - known:
            message = f"a profile has no {', '.join(sorted(unknown))}"
            raise TypeError(message)
        tupled: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**tupled)


# The providers' faults are those of the field notes (transfers between six providers, 2025-12-28).
# The notes give no round trips: 20-40 ms is what data centres of one continent have. Their transfers
# of 10 MB died at 4-8 s, so their links gave about 16 Mbit/s; here it is ten times that, and files may
# be ten times theirs, so that the same thing happens in a tolerable time.
_RATE_HERE = "160mbit"

PROVIDERS: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        # "SCP 1MB: 4/5, 10MB: 1/3; chunks of 2 MB: 5/5", "connection refused" on other ports: strict security groups
        Profile("nebius", rate=_RATE_HERE, rtt_ms=30, reset_bytes=6_000_000, closed="reject"),
        # "Connection resets after 4-8 seconds"; "container network isolation": nothing gets out by itself
        Profile("runpod", rate=_RATE_HERE, rtt_ms=30, reset_seconds=(4, 8), routes_back=False),
        # as RunPod; the SSH proxy adds latency; "aria2c: not in default image"
        Profile("vast", rate=_RATE_HERE, rtt_ms=40, reset_seconds=(4, 8), routes_back=False, without=("aria2c",)),
        # "Flaky", "often drops" where others fail: the same fault, later. 6-20 s is our reading of 1/3 and 2/3
        Profile("vultr", rate=_RATE_HERE, rtt_ms=25, reset_seconds=(6, 20), closed="reject"),
        # "Most stable provider"; 8780 is the notes' data port, 6881 BitTorrent's; "no tools"
        Profile("hetzner", rate=_RATE_HERE, rtt_ms=20, open_ports=(8780, 6881), without=("aria2c",)),
        # "SSH behind proxies": no way in but through another node
        Profile("proxy", rate=_RATE_HERE, rtt_ms=30, jump="hetzner"),
        # Not providers but faults by themselves, to measure against
        Profile("cutter", rate=_RATE_HERE, rtt_ms=40, reset_seconds=(4, 8)),
        Profile("hole", rate=_RATE_HERE, rtt_ms=40, hang_seconds=(4, 8)),
        Profile("far", rate="1gbit", rtt_ms=150),
        Profile("lossy", rate="400mbit", rtt_ms=40, loss=0.005),
    )
}
"""The named profiles, by name."""
