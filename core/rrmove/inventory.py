"""Nodes: read from TOML, and every ssh_config host for free; targets as the user writes them."""

from __future__ import annotations

import functools
import ipaddress
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from rrmove.errors import UsageError
from rrmove.model import Address, Limit, Node, Ports
from rrmove.nodefile import PORTS, NodeFile, address_kind
from rrmove.ssh.config import SSHConfig, check_host, check_user, effective_sync, host_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_NAMES = ("rrmove.toml", "nodes.toml")
_SHOWN = 12  # names in an error message: about one line of a terminal


@dataclass(frozen=True, slots=True)
class Target:
    """A TARGET taken apart: a host word or a tag, and where to; not looked up yet."""

    host: str = ""
    user: str | None = None
    port: int | None = None
    path: str = ""
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """One row of `rrmove nodes`; None is what nobody could say without an `ssh` program."""

    name: str
    host: str | None
    port: int | None
    user: str | None
    provider: str | None
    tags: tuple[str, ...]
    origin: str
    addresses: tuple[str, ...] = ()
    """Those beside the host."""
    last: str | None = None
    """Of several, the one at which the node let us in last."""
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The nodes that can be named.

    `path` is the file they come from (None: there is none), `ssh_config` stands for the user's
    own as with `ssh -F`, `ssh_hosts` are the names in it, `stranger` is what holds for a node
    that is in neither, `limits` those that nodes of a provider share. `others` asks plugins for
    nodes, each with who knows it; it is called only where the files do not have a name or a tag, as
    their word comes first.
    """

    path: Path | None = None
    nodes: Mapping[str, Node] = field(default_factory=lambda: MappingProxyType({}))
    ssh_config: Path | None = None
    ssh_hosts: tuple[str, ...] = ()
    stranger: Node = field(default_factory=lambda: Node(name=""))
    limits: Mapping[str, tuple[Limit, ...]] = field(default_factory=lambda: MappingProxyType({}))
    others: Callable[[], Mapping[str, tuple[Node, str]]] = field(default=dict, compare=False, repr=False)

    def names(self) -> tuple[str, ...]:
        """List all names, the inventory's first; ssh is not asked about them."""
        return tuple(dict.fromkeys((*self.nodes, *self.ssh_hosts, *self.others())))

    def resolve(self, target: str) -> tuple[tuple[Node, str], ...]:
        """Give the nodes that a TARGET means, each with the destination there.

        The destination is the TARGET's path, else the node's own, else empty. May ask ssh and the
        name service about a word that no file has. Raises UsageError where nothing is meant.
        """
        parsed = parse_target(target)
        nodes = self._tagged(parsed.tag) if parsed.tag is not None else (self._named(parsed, target),)
        return tuple((node, parsed.path or node.destination or "") for node in nodes)

    def listing(self, ask: Callable[[Node], SSHConfig | None] = effective_sync) -> tuple[Listed, ...]:
        """List all nodes, the inventory's first; blocks about 8 ms for each, as ssh is asked.

        Raises UsageError where ssh_config is broken.
        """
        from concurrent.futures import ThreadPoolExecutor

        own = [(self.nodes[name], self.path.name if self.path else "") for name in sorted(self.nodes)]
        theirs = [(self._ssh_node(name), "ssh_config") for name in self.ssh_hosts if name not in self.nodes]
        known = {*self.nodes, *self.ssh_hosts}
        more = self.others()
        rows = own + theirs + [(self._other(name), more[name][1]) for name in sorted(more) if name not in known]
        with ThreadPoolExecutor(max_workers=8) as pool:  # ssh waits for files, not for a core
            asked = list(pool.map(ask, (node for node, _ in rows)))
        return tuple(_row(node, says, origin) for (node, origin), says in zip(rows, asked, strict=True))

    def _tagged(self, tag: str) -> tuple[Node, ...]:
        more = [self._other(name) for name in self.others() if name not in self.nodes]
        everyone = sorted([*self.nodes.values(), *more], key=lambda node: node.name)
        nodes = tuple(node for node in everyone if tag in node.tags)
        if not nodes:
            known = {each for node in everyone for each in node.tags}
            remedy = _nearest(tag, known, "tags", mark="@")
            raise UsageError(f"no node has the tag {tag!r}", tried=self._where(), remedy=remedy)
        return nodes

    def _named(self, target: Target, written: str) -> Node:
        node = self.nodes.get(target.host)
        # To look for plugins takes 50 ms, which nobody waits for who writes an address or a full name.
        plain = target.host not in self.ssh_hosts and not re.search(r"[.:]", target.host)
        if node is None and plain and target.host in self.others():
            node = self._other(target.host)
        if node is None:
            if not self._reachable(target):
                raise UsageError(
                    f"unknown node {target.host!r}" + (f" in {written!r}" if ":" in written else ""),
                    tried=self._where(),
                    remedy=_nearest(target.host, self.names(), "nodes"),
                )
            node = self._ssh_node(target.host)
        user = target.user or node.ssh.user
        port = target.port or node.ssh.port
        return replace(node, ssh=replace(node.ssh, user=user, port=port))

    def _ssh_node(self, name: str) -> Node:
        addresses = () if name in self.ssh_hosts else (Address(name, address_kind(name)),)
        ssh = replace(self.stranger.ssh, config=self.ssh_config)
        return replace(self.stranger, name=name, addresses=addresses, ssh=ssh)

    def _other(self, name: str) -> Node:
        """Give a plugin's node, with what holds for every node that is not in the inventory."""
        node = self.others()[name][0]
        ssh = node.ssh if node.ssh.config is not None else replace(node.ssh, config=self.ssh_config)
        return replace(
            node,
            ssh=ssh,
            destination=node.destination or self.stranger.destination,
            limits=node.limits or self.limits.get(node.provider or "", self.stranger.limits),
            ports=self.stranger.ports if node.ports == Ports() else node.ports,
        )

    def _reachable(self, target: Target) -> bool:
        # Whoever writes user@ or a port means a host, whatever the name service says of it.
        if target.user or target.port or target.host in self.ssh_hosts:
            return True
        word = target.host
        return "." in word or ":" in word or self._patterned(word) or _resolves(word)

    def _patterned(self, word: str) -> bool:
        # `Host gpu-*` names no host, yet ssh knows what gpu-3 means: it then answers otherwise
        # than for a word that nobody would write.
        unlikely = "rrmove-" + word[::-1]
        asked = [effective_sync(self._ssh_node(name)) for name in (word, unlikely)]
        meanings = [
            says and (says.hostname == name, says.port, says.user, says.proxyjump, says.proxycommand)
            for says, name in zip(asked, (word, unlikely), strict=True)
        ]
        return meanings[0] != meanings[1]

    def _where(self) -> str:
        return f"{self.path or 'no inventory'} and {self.ssh_config or 'ssh_config'}"


def load_inventory(
    path: Path | None = None,
    *,
    ssh_config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    cwd: Path | None = None,
) -> Inventory:
    """Read the inventory: `path`, $RRMOVE_NODES, ./rrmove.toml, or the user's; none is empty.

    The user's is rrmove.toml or nodes.toml in $XDG_CONFIG_HOME/rrmove (~/.config/rrmove). Raises
    UsageError where a file that was named is missing, or one is malformed: with file, line, key.
    Of [defaults], nodes that only ssh_config or the command line name get what ssh_config cannot
    say: dest, limit_rate and the ports.
    """
    import tomllib

    found = _find(path, environ, cwd or Path.cwd())
    if ssh_config is not None and not ssh_config.is_file():
        raise UsageError(f"there is no ssh_config {str(ssh_config)!r}", remedy="Check the path")
    hosts = host_names(ssh_config)
    others = functools.cache(_ask_plugins)
    if found is None:
        return Inventory(ssh_config=ssh_config, ssh_hosts=hosts, others=others)
    try:
        text = found.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"cannot read the inventory {found}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the inventory {found} is not UTF-8", remedy="Save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the inventory {found} is no TOML: {error}") from error
    reading = NodeFile(found, text, document, hosts)
    return Inventory(
        path=found,
        nodes=MappingProxyType({name: reading.node(name, ssh_config) for name in reading.names}),
        ssh_config=ssh_config,
        ssh_hosts=hosts,
        stranger=reading.stranger(),
        limits=MappingProxyType({name: reading.limits(name) for name in reading.providers}),
        others=others,
    )


def places(targets: Iterable[str | Node], inventory: Inventory | None = None) -> tuple[Node, ...]:
    """Give the nodes that targets mean, in their order and each place once, with the destination there.

    Raises UsageError where a target means nothing, or where one name means two hosts.
    """
    found: dict[tuple[str, str], Node] = {}
    hosts: dict[str, object] = {}
    for target in targets:
        if isinstance(target, Node):
            meant: tuple[tuple[Node, str], ...] = ((target, target.destination or ""),)
        else:
            inventory = inventory or load_inventory()
            meant = inventory.resolve(target)
        for node, path in meant:
            if hosts.setdefault(node.name, node.ssh) != node.ssh:
                raise UsageError(
                    f"{node.name!r} is named twice, with different users or ports",
                    remedy="Run once for each, or give them names of their own in the inventory",
                )
            found.setdefault((node.name, path), replace(node, destination=path or None))
    return tuple(found.values())


def _ask_plugins() -> Mapping[str, tuple[Node, str]]:
    """Ask the hooks that know nodes; what cannot be a host word for ssh is left out."""
    from rrmove.hooks import load_hooks

    def fit(node: Node) -> bool:
        try:
            return bool(check_host(node.ssh.host or node.name)) and bool(check_host(node.name))
        except UsageError:
            return False

    return {name: (node, plugin) for name, (node, plugin) in load_hooks().nodes().items() if fit(node)}


def parse_target(text: str) -> Target:
    """Take a TARGET apart: NODE[:PATH], user@host[:PATH], [v6]:PATH, ssh://…, @tag[:PATH].

    As with scp, a colon after a slash is part of a local path, and the first other one ends the
    host; a bare IPv6 address is one all the same. In `ssh://host/path` the path is absolute, as
    git reads it, and `/~/path` starts at the home. Pure; raises UsageError.
    """
    if "\0" in text:
        raise UsageError("a target has a NUL character in it")
    if text.startswith("ssh://"):
        return _from_url(text)
    if text.startswith("@"):
        tag, _, path = text[1:].partition(":")
        if not tag or "/" in tag:
            raise UsageError(f"{text!r} names no tag", remedy="Write @tag or @tag:PATH")
        return Target(tag=tag, path=path)
    match = re.match(r"(?:([^/:\[\]]*)@)?\[([^\]/]*)\](?::|$)", text)
    if match:
        return _target(match[2], match[1], text[match.end() :])
    word, colon, path = text.partition(":")
    user, at, host = text.rpartition("@")
    if colon and _is_ipv6(host):
        return _target(host, user if at else None, "")
    if text.startswith(".") or "/" in word:
        raise UsageError(
            f"{text!r} is a local path; a target is a node, and pulls come later",
            remedy=f"Write NODE:{text} to name a path on a node",
        )
    user, at, host = word.rpartition("@")
    return _target(host, user if at else None, path)


def _target(host: str, user: str | None, path: str) -> Target:
    return Target(check_host(host), check_user(user) if user is not None else None, path=path)


def _from_url(text: str) -> Target:
    from urllib.parse import unquote

    match = re.fullmatch(r"ssh://(?:([^@/]*)@)?(\[[^\]/]*\]|[^:/\[\]]*)(?::(\d+))?(/.*)?", text, re.DOTALL)
    if match is None:
        raise UsageError(f"{text!r} is no ssh URL", remedy="Write ssh://[user@]host[:port][/path]")
    user, host, port, path = match.groups()
    if port is not None and int(port) not in PORTS:
        raise UsageError(f"{text!r} has no port between 1 and 65535")
    path = unquote(path or "")
    parsed = _target(host.strip("[]"), unquote(user) if user is not None else None, "")
    home = path.startswith("/~/")
    return replace(parsed, port=int(port) if port else None, path=path[3:] if home else path)


def _find(path: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    named = environ.get("RRMOVE_NODES")
    if path is None and named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise UsageError(
                f"$RRMOVE_NODES names {named!r}, which is no file",
                remedy="Correct it, or unset it to use ./rrmove.toml or the user's inventory",
            )
    if path is not None:
        if not path.is_file():
            raise UsageError(f"there is no inventory {str(path)!r}", remedy="Check the path")
        return path
    config = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or Path.home(), ".config")
    for candidate in (cwd / "rrmove.toml", *(Path(config, "rrmove", name) for name in _NAMES)):
        if candidate.is_file():
            return candidate
    return None


def _row(node: Node, says: SSHConfig | None, origin: str) -> Listed:
    return Listed(
        name=node.name,
        host=says.hostname if says else node.ssh.host,
        port=says.port if says else node.ssh.port,
        user=says.user if says else node.ssh.user,
        provider=node.provider,
        tags=tuple(sorted(node.tags)),
        origin=origin,
        addresses=_further(node, says.hostname if says else node.ssh.host),
        limits=node.all_limits,
    )


def _further(node: Node, host: str | None) -> tuple[str, ...]:
    own = {host, node.ssh.host, node.name}
    return tuple(
        each.host if each.port is None else f"{each.host} port {each.port}"
        for each in node.addresses
        if each.host not in own or each.port is not None
    )


def _is_ipv6(word: str) -> bool:
    try:
        return ipaddress.ip_address(word).version == 6
    except ValueError:
        return False


def _resolves(word: str) -> bool:
    import socket

    try:
        return bool(socket.getaddrinfo(word, None))
    except (OSError, UnicodeError):
        return False


def _nearest(word: str, known: Iterable[str], nouns: str, mark: str = "") -> str:
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3)
    if near:
        return f"Did you mean {' or '.join(mark + name for name in near)}?"
    if not names:
        return f"There are no {nouns} yet: add some to rrmove.toml, or write user@host"
    shown = ", ".join(mark + name for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"Known {nouns}: {shown}{more}"
