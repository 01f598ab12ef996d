"""LoginSettings: what ssh_config's answer amounts to for a session that runs without `ssh`. Pure."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rrmove.errors import UsageError
from rrmove.model import Node, SSHSettings
from rrmove.ssh.config import check_host, check_user

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SSH_PORT = 22
DEFAULT_IDENTITIES = ("~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519")
USER_KNOWN = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_KNOWN = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
# What `ssh -G` and ssh_config write for a StrictHostKeyChecking that takes unknown keys without asking.
ACCEPTING = frozenset({"no", "off", "false", "accept-new"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginSettings:
    """How to log in to one host.

    `jumps` are ProxyJump's words in order. `named` are the identities that somebody asked for;
    the others of `identities` are ssh's defaults. `known_hosts` has the user's files first.
    """

    host: str
    port: int
    user: str
    identities: tuple[Path, ...]
    named: frozenset[Path]
    identities_only: bool
    use_agent: bool
    jumps: tuple[str, ...]
    proxy_command: str | None
    known_hosts: tuple[Path, ...]
    host_key_alias: str | None
    accepts_new: bool


def read_settings(node: Node, options: Mapping[str, Sequence[str]], local_user: str) -> LoginSettings:
    """Make settings of ssh's options: lower-case keyword to its values, as `ssh -G` prints them.

    What the node says itself comes first. Raises UsageError where a word is not safe.
    """

    def one(key: str) -> str | None:
        value = options.get(key, ("",))[0].strip()
        return None if value.lower() in {"", "none"} else value

    def files(key: str, default: tuple[str, ...]) -> tuple[Path, ...]:
        words = [word for value in options.get(key, ()) for word in shlex.split(value)] or list(default)
        return tuple(_path(expand(word)) for word in words if word.lower() != "none")

    alias = node.ssh.host or node.name
    host = check_host(one("hostname") or alias)
    port = node.ssh.port or int(one("port") or SSH_PORT)
    user = check_user(node.ssh.user or one("user") or local_user)
    home = str(Path.home())
    tokens = {"%": "%", "h": host, "p": str(port), "r": user, "n": alias, "d": home, "u": local_user}

    def expand(text: str) -> str:
        return re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), text)

    mine = [node.ssh.identity.expanduser()] if node.ssh.identity is not None else []
    theirs = files("identityfile", DEFAULT_IDENTITIES)
    usual = {_path(word) for word in DEFAULT_IDENTITIES}
    jump, command = one("proxyjump"), one("proxycommand")
    return LoginSettings(
        host=host.replace("%h", alias),
        port=port,
        user=user,
        identities=tuple(dict.fromkeys([*mine, *theirs])),
        named=frozenset([*mine, *(path for path in theirs if path not in usual)]),
        identities_only=(one("identitiesonly") or "no").lower() in {"yes", "true"},
        use_agent=options.get("identityagent", ("",))[0].lower() != "none",
        jumps=tuple(filter(None, map(str.strip, jump.split(",")))) if jump else (),
        proxy_command=expand(command) if command and not jump else None,
        known_hosts=files("userknownhostsfile", USER_KNOWN) + files("globalknownhostsfile", GLOBAL_KNOWN),
        host_key_alias=one("hostkeyalias"),
        accepts_new=(one("stricthostkeychecking") or "ask").lower() in ACCEPTING,
    )


def hop_node(word: str, node: Node) -> Node:
    """Make a node of one word of ProxyJump: [ssh://][user@]host[:port]. Raises UsageError else."""
    match = re.fullmatch(r"(?:ssh://)?(?:(.+)@)?(?:\[([^]]+)\]|([^:\[\]]+))(?::([0-9]+))?/?", word)
    if match is None:
        raise UsageError(f"{word!r} is no jump host", node=node.name, remedy="Mend ProxyJump in your ssh_config")
    user, bracketed, plain, port = match.groups()
    host = check_host(bracketed or plain)
    return Node(
        name=node.name,
        ssh=SSHSettings(host=host, user=user, port=int(port) if port else None, config=node.ssh.config),
    )


def _path(word: str) -> Path:
    return Path(os.path.expanduser(word))  # noqa: PTH111  Path.expanduser() raises for users that are not there
