"""The lab itself: a client host and hostile nodes on one machine, and what tests may do to them and see of them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from tests.lab.firewall import Ports
from tests.lab.network import Network
from tests.lab.node import Node
from tests.lab.processes import LabError, command_lines, end, inhabitants, record_process, recorded, tell
from tests.lab.profiles import PROVIDERS, Profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Literal

    Argv = Sequence[str | os.PathLike[str]]

DIRECTORY = Path("/var/tmp/rrmove-lab")
"""Where the command line keeps its lab; labs without a directory of their own lie beside it."""

_CLIENT_INDEX = 1
_FIRST_NODE = 10
_MOST_NODES = 200
# A node binds its own over these
_HIDDEN_ON_NODES = ("/tmp", "/root", "/data", "/run")
# ssh asks the password file, and not $HOME, for its home: so the client's .ssh is bound there, for this one command
_AS_CLIENT = 'mkdir -p -m 700 /root/.ssh && mount --bind "$0" /root/.ssh && exec "$@"'
_XDG = ("STATE", "CACHE", "CONFIG", "DATA")
_numbers = itertools.count()


class Lab:
    """A cluster of hostile nodes. A context manager; `up` and `down` by hand do the same.

    Traffic stays in network namespaces of the lab's own. Several labs may be up at once, each in its own
    directory. Needs root.
    """

    def __init__(
        self, profiles: Iterable[Profile], directory: Path | None = None, uplink: str | None = None, seed: int = 7
    ) -> None:
        """Describe a lab; `up` builds it.

        `directory` holds its state (None: a new one beside DIRECTORY; once this process is dead, the next lab
        to be built removes it). `uplink` is the rate of the client's own link, `seed` decides when connections
        are reset. TCP's congestion control is the machine's. A jump host that is missing joins from PROVIDERS.
        """
        self._given = directory is not None
        self.directory = (
            directory.absolute()
            if directory
            else DIRECTORY.with_name(f"{DIRECTORY.name}-{os.getpid()}-{next(_numbers)}")
        )
        if any(self.directory.is_relative_to(hidden) for hidden in _HIDDEN_ON_NODES):
            message = f"{self.directory}: nodes have a {self.directory.parts[1]} of their own; put the lab elsewhere"
            raise ValueError(message)
        self.profiles = _with_jump_hosts(profiles)
        self._uplink = uplink
        self._seed = seed
        self._network = Network(self.directory)
        self._client = self.directory / "client"
        self._nodes = {
            profile.name: Node(profile, index, self._network, authorized=self._client / "id.pub", seed=seed)
            for index, profile in enumerate(self.profiles, start=_FIRST_NODE)
        }

    # Building

    @classmethod
    def attach(cls, directory: Path = DIRECTORY) -> Self:
        """Return the lab that is up in a directory, perhaps another process's. LabError if there is none."""
        try:
            state = json.loads((directory / "lab.json").read_text())
        except FileNotFoundError:
            message = f"no lab is up in {directory}"
            raise LabError(message) from None
        return cls([Profile.from_json(values) for values in state.pop("profiles")], directory, **state)

    def up(self) -> Self:
        """Build the lab; what an earlier one left in its directory goes first. LabError; then nothing is left."""
        sweep()
        self.down()
        try:
            self._build()
        except BaseException:
            self.down()
            raise
        return self

    def _build(self) -> None:
        (self._client / "ssh").mkdir(parents=True, mode=0o700)
        if not self._given:
            record_process(os.getpid(), self.directory / "owner.pid")
        profiles = [profile.to_json() for profile in self.profiles]
        state = {"uplink": self._uplink, "seed": self._seed, "profiles": profiles}
        (self.directory / "lab.json").write_text(json.dumps(state, indent=1))
        tell(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "client", "-f", str(self._client / "id")])
        self._network.build()
        self._network.plug("client", _CLIENT_INDEX, Profile("uplink", rate=self._uplink))
        for node in self._nodes.values():
            self._network.plug(node.name, node.index, node.profile)
            node.boot(self._ports(node, node.profile.open_ports, node.profile.closed))
        for node in self._nodes.values():
            node.ready()
        known_hosts = self._client / "ssh/known_hosts"
        known_hosts.write_text("".join(f"{node.address} {node.host_key}\n" for node in self._nodes.values()))
        self.ssh_config.write_text("\n".join(self._host_entry(node) for node in self._nodes.values()))
        for path in (self.ssh_config, known_hosts):
            path.chmod(0o600)

    def _host_entry(self, node: Node) -> str:
        lines = [f"Host {node.name}", f"  HostName {node.address}", "  User root"]
        lines += [f"  IdentityFile {self._client}/id", "  IdentitiesOnly yes"]
        lines += [f"  UserKnownHostsFile {self._client}/ssh/known_hosts"]
        if node.profile.jump:
            lines.append(f"  ProxyJump {node.profile.jump}")
        return "\n".join(lines) + "\n"

    def _ports(
        self, node: Node, open_ports: tuple[int, ...], closed: Literal["drop", "reject"], *, ssh: bool = True
    ) -> Ports:
        jump = self._nodes[node.profile.jump].address if node.profile.jump else None
        return Ports(open_ports=open_ports, closed=closed, ssh=ssh, only_from=jump)

    def down(self) -> None:
        """Take the lab apart: no process, namespace or file of it is left. A repeat does nothing."""
        if self.directory.exists() and any(self.directory.iterdir()) and not (self.directory / "client").is_dir():
            message = f"{self.directory} is not empty and no lab's: it is left alone"
            raise LabError(message)
        for record in [*self.directory.glob("cable-*.pid"), *self.directory.glob("nodes/*/*.pid")]:
            end(record)
        self._network.destroy()
        if self.directory.exists():
            # The client's folder goes last: it is what tells a lab, or half of one, from a stranger's files
            for entry in sorted(self.directory.iterdir(), key=lambda entry: entry.name == "client"):
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
            self.directory.rmdir()

    def __enter__(self) -> Self:
        """Build the lab."""
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the lab apart."""
        self.down()

    # Acting

    def run(
        self,
        argv: Argv,
        *,
        timeout: float = 60,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the client host.

        `env` adds to the environment. subprocess.CalledProcessError if it fails and `check` is set,
        subprocess.TimeoutExpired after `timeout` seconds; then the command's whole process group is killed.
        """
        return _run(self.as_client(argv), {**self.environment(), **(env or {})}, timeout, stdin, cwd=cwd, check=check)

    def popen(self, argv: Argv, **options: Any) -> subprocess.Popen[Any]:
        """Start a command as the client host, in a session of its own. Options: subprocess.Popen's; `env` adds."""
        env = {**self.environment(), **options.pop("env", {})}
        return subprocess.Popen(self.as_client(argv), env=env, **{"start_new_session": True, **options})

    def as_client(self, argv: Argv) -> list[str]:
        """Return the command that runs a command as the client host; the client's `environment` belongs to it."""
        namespace = self._network.namespace("client")
        return ["ip", "netns", "exec", namespace, "sh", "-c", _AS_CLIENT, str(self._client / "ssh"), *_words(argv)]

    def environment(self) -> dict[str, str]:
        """Return the client's environment: ours, with the lab's own XDG directories and without our SSH agent."""
        own = {f"XDG_{kind}_HOME": str(self._client / kind.lower()) for kind in _XDG}
        return {**{key: value for key, value in os.environ.items() if key != "SSH_AUTH_SOCK"}, **own}

    def on(
        self,
        node: str,
        argv: Argv,
        *,
        timeout: float = 60,
        check: bool = True,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node, as if at its console. Raises as `run` does."""
        command, environment = self.enter(node, argv)
        return _run(command, environment, timeout, stdin, check=check)

    def popen_on(self, node: str, argv: Argv, **options: Any) -> subprocess.Popen[Any]:
        """Start a command on a node, in a session of its own; options are subprocess.Popen's."""
        command, environment = self.enter(node, argv)
        return subprocess.Popen(command, **{"start_new_session": True, "env": environment, **options})

    def enter(self, node: str, argv: Argv) -> tuple[list[str], dict[str, str]]:
        """Return the command that runs a command on a node, and the environment that belongs to it."""
        found = self._nodes[node]
        return found.enter(*_words(argv)), found.environment()

    def wipe(self, *nodes: str) -> None:
        """End the sessions of nodes (none named: of all) and empty their /root, /data and /tmp. Counters go on."""
        for name in nodes or self._nodes:
            self._nodes[name].wipe()

    def hide(self, node: str, *tools: str) -> None:
        """Take tools away from a running node. "python3" takes every python3.x."""
        self._nodes[node].hide(*tools)

    def restore(self, node: str, *tools: str) -> None:
        """Bring tools back that were hidden, by the profile or by `hide`."""
        self._nodes[node].restore(*tools)

    def filter_ports(
        self, node: str, *open_ports: int, closed: Literal["drop", "reject"] = "drop", ssh: bool = True
    ) -> None:
        """Let in these ports, and 22 if `ssh` is set, and no others. Established connections go on."""
        found = self._nodes[node]
        found.filter_ports(self._ports(found, open_ports, closed, ssh=ssh))

    def stop_sshd(self, node: str) -> None:
        """End a node's sshd and its sessions: port 22 answers with RST."""
        self._nodes[node].stop_sshd()

    def start_sshd(self, node: str) -> None:
        """Start a node's sshd, and return once it listens."""
        self._nodes[node].start_sshd()

    def change_host_key(self, node: str) -> None:
        """Give a node another host key; the client's known_hosts keeps the old one. Sessions end."""
        self._nodes[node].change_host_key()

    def forget(self) -> None:
        """Empty the client's XDG directories: what programs have remembered there is gone."""
        for kind in _XDG:
            shutil.rmtree(self._client / kind.lower(), ignore_errors=True)

    # Seeing

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes."""
        return tuple(self._nodes)

    @property
    def ssh_config(self) -> Path:
        """The client's ssh_config, which has every node. Commands run as the client find it as ~/.ssh/config."""
        return self._client / "ssh/config"

    @property
    def client_address(self) -> str:
        """The client's address."""
        return self._network.address(_CLIENT_INDEX)

    @property
    def namespaces(self) -> list[str]:
        """The network namespaces of this lab that exist."""
        return self._network.namespaces()

    def address(self, node: str) -> str:
        """Return a node's address."""
        return self._nodes[node].address

    def path(self, node: str, path: str | os.PathLike[str]) -> Path:
        """Return where a node's path lies on this machine. A relative path begins at /root."""
        return self._nodes[node].path(path)

    def sha256(self, node: str, path: str | os.PathLike[str]) -> str | None:
        """Hash a node's file, read from outside. None if there is no such file."""
        try:
            with self.path(node, path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    def bytes_to(self, node: str) -> int:
        """Return how many bytes have gone on the wire towards a node.

        Headers and TCP's repeats count, and so does what a cable's queue or losses drop; loopback does not.
        """
        return self._network.bytes_towards(self._nodes[node].index)

    def flips(self, node: str) -> int:
        """Return how many bits were flipped on the way to a node so far."""
        record = self._network.flipped(node)
        return record.stat().st_size if record.exists() else 0

    def bytes_sent(self) -> int:
        """Return how many bytes the client has put on its own line, whoever they were for."""
        return self._network.bytes_from(_CLIENT_INDEX)

    def resets(self, node: str) -> int:
        """Return how many of a node's SSH connections were cut so far: by RST at an age or volume, or by silence."""
        return self._nodes[node].reaped() + self._nodes[node].count("cuts")

    def connects(self, node: str) -> int:
        """Return how many SSH connections to a node were asked for so far, whether or not they came about."""
        return self._nodes[node].count("connects")

    def processes(self, host: str = "client") -> list[str]:
        """Return the command lines of what runs as the client, or on a node: sessions, and what they left behind."""
        if host == "client":
            return command_lines(inhabitants(self._network.namespace(host)))
        return command_lines(self._nodes[host].guests())

    def sshd_log(self, node: str) -> str:
        """Return what a node's sshd has written."""
        log = self._nodes[node].home / "sshd.log"
        return log.read_text(errors="replace") if log.exists() else ""


def sweep() -> None:
    """Take apart the labs beside DIRECTORY whose process is dead."""
    for owner in DIRECTORY.parent.glob(f"{DIRECTORY.name}-*/owner.pid"):
        if recorded(owner) is None:
            with contextlib.suppress(OSError, LabError):  # another process may be sweeping too
                Lab([], owner.parent).down()


def _with_jump_hosts(profiles: Iterable[Profile]) -> tuple[Profile, ...]:
    """Add the jump hosts that are missing. ValueError if names clash, a jump host is unknown, or nodes are too many."""
    listed = list(profiles)
    names = [profile.name for profile in listed]
    if len(set(names)) < len(names) or len(names) > _MOST_NODES:
        message = f"nodes need names of their own, and {_MOST_NODES} are enough: {', '.join(names)}"
        raise ValueError(message)
    for profile in listed:  # grows while we look, so that a jump host's jump host joins too
        if profile.jump and profile.jump not in names:
            if profile.jump not in PROVIDERS:
                message = f"{profile.name} is behind {profile.jump}, which is no node"
                raise ValueError(message)
            listed.append(PROVIDERS[profile.jump])
            names.append(profile.jump)
    return tuple(listed)


def _run(
    argv: list[str], env: Mapping[str, str], timeout: float, stdin: str | None, *, check: bool, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command like subprocess.run, but kill its whole group when its time is up.

    Its output goes to files: a child that outlives the command cannot hold us up by keeping a pipe open.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                process.communicate(stdin, timeout=timeout)
            except BaseException as error:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    error.output, error.stderr = _read(out), _read(err)  # type: ignore[assignment] # as text=True does
                raise
        done = subprocess.CompletedProcess(argv, process.returncode, _read(out), _read(err))
    if check and done.returncode:
        failure = subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
        failure.add_note(done.stderr[-2000:])
        raise failure
    return done


def _words(argv: Argv) -> list[str]:
    return [os.fspath(word) for word in argv]


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return bytes(file.read()).decode(errors="replace")
