"""The lab's wiring: a namespace per host, a switch in a namespace of its own, veth pairs with a rate, or cables."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.processes import evict, launch, tell, wait_until

if TYPE_CHECKING:
    import subprocess

    from tests.lab.profiles import Profile

_SWITCH = "switch"
_CABLE = Path(__file__).with_name("cable.py")
# A token bucket must hold a few offloaded frames of 64 KiB; 30 ms of queue is a small router's
_BUCKET = ("burst", "256kb", "latency", "30ms")
_SMALLEST_QUEUE = 512 * 1024


@dataclass(frozen=True, slots=True)
class Network:
    """The namespaces of one lab. Their names and addresses follow from its directory, so that labs do not meet."""

    directory: Path

    @property
    def prefix(self) -> str:
        """What the names of this lab's namespaces begin with."""
        return f"rrm{self._digest[:6]}-"

    @property
    def range(self) -> IPv4Network:
        """The lab's addresses: one of 16,384 networks from 10.64.0.0 on."""
        number = int(self._digest[6:12], 16) % (64 * 256)
        return IPv4Network((0x0A400000 + number * 256, 24))

    @property
    def _digest(self) -> str:
        return hashlib.sha256(str(self.directory).encode()).hexdigest()

    def namespace(self, host: str) -> str:
        """Return the name of a host's namespace."""
        return self.prefix + host

    def address(self, index: int) -> str:
        """Return the address of the host on a port of the switch."""
        return str(self.range[index])

    def inside(
        self, host: str, *argv: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a tool in a host's namespace."""
        return tell(["ip", "netns", "exec", self.namespace(host), *argv], stdin=stdin, check=check)

    def build(self) -> None:
        """Make the switch."""
        tell(["ip", "netns", "add", self.namespace(_SWITCH)])
        self._batch(_SWITCH, "link add br0 type bridge", "link set br0 up", "link set lo up")

    def plug(self, host: str, index: int, profile: Profile) -> None:
        """Make a host's namespace and connect it to a port of the switch, by the link its profile describes."""
        name, port = self.namespace(host), f"port{index}"
        tell(["ip", "netns", "add", name])
        settings = ["net.ipv6.conf.default.disable_ipv6=1", "net.netfilter.nf_conntrack_acct=1"]
        self.inside(host, "sysctl", "-qw", *settings)
        if profile.needs_cable:
            self._lay_cable(host, index, profile)
        else:
            self._batch(_SWITCH, f"link add {port} type veth peer name eth0 netns {name}")
        self._batch(_SWITCH, f"link set {port} master br0 up")
        self._batch(host, "link set lo up", f"addr add {self.address(index)}/24 dev eth0", "link set eth0 up")
        if profile.rate and not profile.needs_cable:
            for where, device in ((_SWITCH, port), (host, "eth0")):
                self.inside(
                    where, "tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", profile.rate, *_BUCKET
                )

    def _lay_cable(self, host: str, index: int, profile: Profile) -> None:
        port, far = f"port{index}", f"far{index}"
        ready = self.directory / f"cable-{host}.ready"
        bits = profile.bits or 0
        queue = profile.queue_bytes or max(_SMALLEST_QUEUE, int(bits / 8 * profile.rtt_ms / 1000))
        argv = ["ip", "netns", "exec", self.namespace(_SWITCH), sys.executable, "-I", "-S", str(_CABLE), port, far]
        argv += ["--delay-us", str(profile.rtt_ms * 500), "--rate", str(bits), "--queue", str(queue)]
        argv += ["--loss", str(profile.loss), "--seed", host, "--ready", str(ready)]
        if profile.flips:
            port_there, every = profile.flips
            argv += ["--flip-port", str(port_there), "--flip-every", str(every), "--flipped", str(self.flipped(host))]
        launch(argv, record=self.directory / f"cable-{host}.pid", log=self.directory / f"cable-{host}.log")
        wait_until(ready.exists, 10, f"the cable of {host}")
        self._batch(_SWITCH, f"link set {far} netns {self.namespace(host)} name eth0")

    def flipped(self, host: str) -> Path:
        """Return the file that has a byte for each bit that was flipped on the way to a host."""
        return self.directory / f"cable-{host}.flipped"

    def bytes_towards(self, index: int) -> int:
        """Return how many bytes have left the switch by a port: headers and what TCP sent again included."""
        return self._counted(index, "tx")

    def bytes_from(self, index: int) -> int:
        """Return how many bytes have entered the switch by a port: headers and what TCP sent again included."""
        return self._counted(index, "rx")

    def _counted(self, index: int, way: str) -> int:
        shown = tell(["ip", "-n", self.namespace(_SWITCH), "-s", "-j", "link", "show", "dev", f"port{index}"])
        return int(json.loads(shown.stdout)[0]["stats64"][way]["bytes"])

    def namespaces(self) -> list[str]:
        """Return the names of this lab's namespaces that exist."""
        home = Path("/run/netns")
        return sorted(path.name for path in home.glob(f"{self.prefix}*")) if home.exists() else []

    def destroy(self) -> None:
        """End whatever lives in the lab's namespaces, and remove them."""
        names = self.namespaces()
        for name in names:
            evict(name)
        for name in names:
            tell(["ip", "netns", "del", name], check=False)

    def _batch(self, host: str, *commands: str) -> None:
        tell(["ip", "-n", self.namespace(host), "-batch", "-"], stdin="\n".join(commands) + "\n")
