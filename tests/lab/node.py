"""A node: its own files, its own programs, a real sshd with its own host key, and the faults of its profile."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.firewall import TABLE, Ports, change_ports, ruleset
from tests.lab.processes import LabError, end, evict, inhabitants, launch, recorded, tell, wait_until

if TYPE_CHECKING:
    from tests.lab.network import Network
    from tests.lab.profiles import Profile

_REAPER = Path(__file__).with_name("reaper.py")
_PROGRAMS = (Path("/usr/local/bin"), Path("/usr/bin"))
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A tool that goes by several names goes with all of them
_NAMES = {"python3": ("python3*", "python", "python2*"), "perl": ("perl", "perl5*")}

_SSHD = """\
Port 22
AddressFamily inet
HostKey {home}/hostkey
PidFile {home}/sshd.listens
AuthorizedKeysFile {authorized}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
MaxSessions {profile.max_sessions}
MaxStartups {profile.max_startups}
Subsystem sftp internal-sftp
SetEnv PATH={path}
"""

_FILTER = """\
narrow() { LC_ALL=C stdbuf -o0 tr '\\200-\\377' '?'; }
narrow | sh -c "$SSH_ORIGINAL_COMMAND" | narrow
"""

# Run by `ip netns exec`, which has made us a mount namespace that nothing leaks out of
_BOOT = """\
set -e
mkdir -p /data {home}/layers
mount -t tmpfs layers {home}/layers
{overlays}
{data}
mount --bind {home}/root /root
mount -t tmpfs run /run
mkdir -p /run/sshd
cd /
touch {home}/ready
# Last: what the lab itself needs may not be hidden before
mount --bind {home}/tmp /tmp
exec sleep infinity
"""

_OVERLAY = """\
mkdir -p {layers}/upper {layers}/work
mount -t overlay overlay -o lowerdir={where},upperdir={layers}/upper,workdir={layers}/work {where}
"""


class Node:
    """One node. Made by the lab, which alone calls it."""

    def __init__(self, profile: Profile, index: int, network: Network, *, authorized: Path, seed: int) -> None:
        """Describe the node on a port of the switch. Nothing is built yet."""
        self.profile = profile
        self.name = profile.name
        self.index = index
        self.address = network.address(index)
        self.home = network.directory / "nodes" / profile.name
        self._network = network
        self._authorized = authorized
        self._seed = seed

    @property
    def pid(self) -> int:
        """The process whose mount and network namespaces are the node. LabError if the node is not up."""
        pid = recorded(self.home / "host.pid")
        if pid is None:
            message = f"{self.name} is not up"
            raise LabError(message)
        return pid

    def boot(self, ports: Ports) -> None:
        """Start the node on a network that is plugged already; `ready` says when it is up."""
        for folder in ("root", "tmp", "data"):
            (self.home / folder).mkdir(parents=True)
        (self.home / "tmp").chmod(0o1777)
        (self.home / "root").chmod(0o700)
        self._network.inside(self.name, "nft", "-f", "-", stdin=ruleset(self.profile, ports))
        self._make_host_key()
        (self.home / "sshd_config").write_text(
            _SSHD.format(home=self.home, authorized=self._authorized, profile=self.profile, path=_SEARCH_PATH)
        )
        if self.profile.seven_bits:
            (self.home / "filter.sh").write_text(_FILTER)
            with (self.home / "sshd_config").open("a") as config:
                config.write(f"ForceCommand sh {self.home}/filter.sh\n")
        size = self.profile.data_mb
        home = shlex.quote(str(self.home))
        script = _BOOT.format(
            home=home,
            overlays="".join(
                _OVERLAY.format(where=where, layers=f"{home}/layers/{where.name}-{number}")
                for number, where in enumerate(_PROGRAMS)
                if where.is_dir()
            ),
            data=f"mount -t tmpfs -o size={size}m data /data" if size else f"mount --bind {home}/data /data",
        )
        argv = ["ip", "netns", "exec", self._network.namespace(self.name), "sh", "-c", script]
        launch(argv, record=self.home / "host.pid", log=self.home / "boot.log")

    def ready(self) -> None:
        """Wait until the node is up, take its tools away, start its sshd and its faults."""
        try:
            wait_until((self.home / "ready").exists, 10, f"{self.name} to boot")
        except LabError as error:
            message = f"{error}: {(self.home / 'boot.log').read_text()}"
            raise LabError(message) from error
        # The root of /proc/PID is the node's once its shell has become `sleep`, and /tmp with it
        wait_until(lambda: b"sleep" in Path(f"/proc/{self.pid}/cmdline").read_bytes()[:5], 10, f"{self.name} to settle")
        self.hide(*self.profile.without)
        if not self.profile.down:
            self.start_sshd()
        self._start_reaper()

    def _start_reaper(self) -> None:
        ages = self.profile.reset_seconds or self.profile.hang_seconds
        if not ages:
            return
        argv = ["ip", "netns", "exec", self._network.namespace(self.name), sys.executable, "-I", "-S", str(_REAPER)]
        argv += ["reset" if self.profile.reset_seconds else "silence", *map(str, ages)]
        argv += ["--seed", f"{self._seed} {self.name}", "--count", str(self.home / "reaped")]
        launch(argv, record=self.home / "reaper.pid", log=self.home / "reaper.log")
        wait_until((self.home / "reaped").exists, 10, f"the reaper of {self.name}")

    def enter(self, *argv: str) -> list[str]:
        """Return the command that runs a command on the node."""
        return ["nsenter", "-t", str(self.pid), "-m", "-n", *argv]

    @staticmethod
    def environment() -> dict[str, str]:
        """Return what a command on the node finds in its environment."""
        return {"PATH": _SEARCH_PATH, "HOME": "/root", "USER": "root", "LANG": os.environ.get("LANG", "C.UTF-8")}

    def start_sshd(self) -> None:
        """Start sshd, and return once it listens. Does nothing if it runs."""
        record, listens = self.home / "sshd.pid", self.home / "sshd.listens"
        if recorded(record) is not None:
            return
        listens.unlink(missing_ok=True)
        argv = self.enter(
            "/usr/sbin/sshd", "-D", "-f", str(self.home / "sshd_config"), "-E", str(self.home / "sshd.log")
        )
        launch(argv, record=record, log=self.home / "sshd.log", env=self.environment())
        wait_until(lambda: listens.exists() and bool(listens.read_text().strip()), 10, f"sshd on {self.name} to listen")

    def stop_sshd(self) -> None:
        """End sshd and every session: port 22 answers with RST."""
        end(self.home / "sshd.pid")
        self.end_sessions()

    def end_sessions(self) -> None:
        """End whatever runs on the node but the node itself and its sshd: sessions, and what they left behind."""
        evict(self._network.namespace(self.name), spare=self._own())

    def guests(self) -> set[int]:
        """Return the pids of sessions, and of what they left behind."""
        return inhabitants(self._network.namespace(self.name)) - self._own()

    def _own(self) -> set[int]:
        records = (recorded(self.home / f"{name}.pid") for name in ("host", "sshd", "reaper"))
        return {pid for pid in records if pid is not None}

    def change_host_key(self) -> None:
        """Give the node another host key, which the client's known_hosts does not have; sessions end."""
        self.stop_sshd()
        self._make_host_key()
        self.start_sshd()

    def _make_host_key(self) -> None:
        for name in ("hostkey", "hostkey.pub"):
            (self.home / name).unlink(missing_ok=True)
        tell(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(self.home / "hostkey")])

    @property
    def host_key(self) -> str:
        """The node's public host key, as known_hosts has it."""
        return " ".join((self.home / "hostkey.pub").read_text().split()[:2])

    def path(self, path: str | os.PathLike[str]) -> Path:
        """Return where a path of the node lies on this machine, for as long as the node is up."""
        inside = Path(path)
        if not inside.is_absolute():
            inside = Path("/root") / inside
        first = inside.parts[1] if len(inside.parts) > 1 else ""
        if first in {"root", "tmp"} or (first == "data" and not self.profile.data_mb):
            return self.home / inside.relative_to("/")
        return Path(f"/proc/{self.pid}/root") / inside.relative_to("/")

    def wipe(self) -> None:
        """End the sessions and empty /root, /data and /tmp."""
        self.end_sessions()
        for folder in ("/root", "/data", "/tmp"):
            for entry in self.path(folder).iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()

    def hide(self, *tools: str) -> None:
        """Take tools away: no program of that name is left on the node. What runs goes on running."""
        for directory in _PROGRAMS:
            for pattern in _patterns(tools):
                for found in self.path(directory).glob(pattern):
                    found.unlink()

    def restore(self, *tools: str) -> None:
        """Bring hidden tools back."""
        for directory in _PROGRAMS:
            for pattern in _patterns(tools):
                for found in directory.glob(pattern):
                    back = self.path(directory) / found.name
                    if not back.is_symlink() and not back.exists():
                        shutil.copy2(found, back, follow_symlinks=False)

    def filter_ports(self, ports: Ports) -> None:
        """Replace the rules for new connections; established ones go on."""
        self._network.inside(self.name, "nft", "-f", "-", stdin=change_ports(ports))

    def count(self, counter: str) -> int:
        """Read one of the firewall's counters: "connects" or "cuts"."""
        shown = self._network.inside(self.name, "nft", "-j", "list", "counter", *TABLE.split(), counter)
        return sum(
            int(entry["counter"]["packets"]) for entry in json.loads(shown.stdout)["nftables"] if "counter" in entry
        )

    def reaped(self) -> int:
        """Return how many connections were ended for their age."""
        try:
            return int((self.home / "reaped").read_text())
        except FileNotFoundError:
            return 0


def _patterns(tools: tuple[str, ...]) -> list[str]:
    return [pattern for tool in tools for pattern in _NAMES.get(tool, (tool,))]
