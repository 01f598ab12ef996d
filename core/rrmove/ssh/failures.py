"""What went wrong with a login or an operation, from the words of ssh and the agent's errnos."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rrmove.errors import Fatal, RRMoveError, Transient, Unusable
from rrmove.units import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping


class NoPython(Transient):
    """The node has no python3 that could run the agent; the shell floor serves there."""


class NotOurs(Transient):
    """Our own SSH client cannot log in there, or is not let in; `ssh` has its turn."""


class NotTheNode(Transient):
    """The machine at one of a node's addresses is another; the next address has its turn."""


class HostKeyError(Fatal):
    """The host key is unknown, or another one than is known, or revoked."""

    @property
    def certain(self) -> bool:
        """Whether a key is known, and it is not this one; else a certificate's authority may still vouch for it."""
        return "not the one that is known" in self.what


class NotClean(Transient):
    """The connection does not carry all byte values; lanes of text serve there."""


class NoLogin(Transient):
    """No connection could be made; the node may be down, or too many connections were tried."""

    @property
    def hopeless(self) -> bool:
        """Whether a node that says this at the very first login is not worth waiting for."""
        return "does not answer" in self.what


# The first pattern that matches decides: what ssh writes to stderr, the error's class, what we say
# of it, and the remedy. {host} and {node} are filled in. Collected from OpenSSH 8.9 to 9.9.
_WORDS: tuple[tuple[str, type[RRMoveError], str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for \S+ has changed",
        HostKeyError,
        "the host key is not the one that is known: the node was rebuilt, or somebody is in between",
        "If you know that it was rebuilt, run `{mend}` and log in once with `ssh {host}`",
    ),
    (
        r"Host key verification failed|host key is known for .* strict checking|No \S+ host key is known",
        HostKeyError,
        "the host key is unknown",
        "Log in once with `ssh {host}` and check the fingerprint, or add the key to known_hosts",
    ),
    (
        # The key file is the cause where no other key opened the door; else it was but a warning.
        r"(UNPROTECTED PRIVATE KEY FILE|Load key [^\n]*)[\s\S]*Permission denied \(",
        Fatal,
        "the private key cannot be used",
        "Mend the key file or its permissions (`chmod 600`)",
    ),
    (
        # With the list of methods: without it, it may be the node's .bashrc that complains of a file.
        r"Permission denied \(|Too many authentication failures|no mutual signature|No more authentication methods",
        Fatal,
        "authentication was refused",
        "Check the user, and that its authorized_keys has your key: `ssh -v {host}` shows which keys are tried",
    ),
    (
        r"Could not resolve hostname .*(Temporary failure|Try again)",
        NoLogin,
        "the name cannot be resolved just now",
        "Check the network and DNS",
    ),
    (
        r"Could not resolve hostname|Name or service not known",
        Fatal,
        "there is no host of that name",
        "Check the name; `rrmove nodes` lists the nodes that are known",
    ),
    (
        r"Bad configuration option|Bad owner or permissions|terminating, \d+ bad configuration|Can't open user config",
        Fatal,
        "ssh refuses its configuration",
        "Mend your ssh_config: `ssh -G {host}` shows the complaint",
    ),
    (
        r"no matching (cipher|mac|MAC|key exchange|host key type)|Unable to negotiate",
        Fatal,
        "ssh and the node have no algorithm in common",
        "Allow one that the node offers, in ssh_config",
    ),
    (
        r"Connection refused",
        NoLogin,
        "nothing listens on the SSH port",
        "Check that the node is up and its port is right: `ssh {host}`",
    ),
    (
        r"timed out|No route to host|Network is unreachable",
        NoLogin,
        "the node does not answer",
        "Check that it is up, its address, and firewalls on the way: `ssh -v {host}`",
    ),
    (
        (
            r"kex_exchange_identification|ssh_exchange_identification|Connection closed by .* port|banner exchange"
            r"|Not allowed at this time|Exceeded MaxStartups|mux_client|Session open refused"
        ),
        NoLogin,
        "the node closed the connection before the login",
        "It may limit connections (MaxStartups, PerSourcePenalties); wait a little",
    ),
)

# ssh knows under which name the key is filed, and in which file.
_REMOVE = re.compile(r"remove with:\s*(ssh-keygen [^\r\n]+)")
_LINK = re.compile(r"Connection reset|Broken pipe|Connection closed|closed by remote|send disconnect", re.IGNORECASE)


def explain_login(words: str, status: int | None, *, node: str, host: str) -> RRMoveError:
    """Translate what `ssh` said on stderr and its exit status to the most specific error.

    A lost connection is Transient; NoLogin, which is Transient too, is one that never came about.
    """
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    said = " ".join(lines)[-500:]
    for pattern, kind, what, remedy in _WORDS:
        if re.search(pattern, words):
            telling = next((line for line in lines if re.search(pattern, line)), said)
            remove = _REMOVE.search(words)
            mend = remove[1].strip() if remove else f"ssh-keygen -R {host}"
            advice = remedy.format(host=host, node=node, mend=mend)
            return kind(what, node=node, tried=f"ssh {host}: {telling.strip('@ ')}", remedy=advice)
    if _LINK.search(words):
        return Transient("the connection was lost", node=node, tried=said)
    ended = "" if status is None else f" with status {status}"
    return Transient(f"the connection ended{ended}", node=node, tried=said or f"ssh {host}")


_SPACE = frozenset({"ENOSPC", "EDQUOT", "EFBIG"})
_DENIED = frozenset({"EACCES", "EPERM", "EROFS"})
_PATH = frozenset({"ENOTDIR", "EEXIST", "EISDIR", "ENAMETOOLONG", "ELOOP", "EINVAL"})
_NO_PROGRAM = frozenset({"ENOENT", "EACCES", "ENOEXEC", "ENOTDIR"})  # what was to be run is not there


def explain_operation(op: str, error: Mapping[str, object], *, node: str, path: str) -> RRMoveError:
    """Translate an agent's error answer: what the node's file system refuses is Fatal."""
    name, text = str(error.get("errno")), str(error.get("text"))
    if name == "ENOSYS" or (op == "run" and name in _NO_PROGRAM):
        return Unusable(text, node=node, tried=op)
    if name in _SPACE:
        need, free = error.get("need"), error.get("free")
        if isinstance(need, int) and isinstance(free, int):
            what = f"the disk is full: {format_size(need)} are needed, {format_size(free)} are free"
            what += f", {format_size(need - free)} are missing"
        else:
            what = f"the disk is full ({text})"
        return Fatal(what, node=node, tried=path, remedy="Make room, or choose another destination")
    if name in _DENIED:
        return Fatal(
            f"no permission: {text}",
            node=node,
            tried=path,
            remedy="Choose a directory that the user may write to",
        )
    if name in _PATH:
        return Fatal(f"the destination cannot be used: {text}", node=node, tried=path, remedy="Choose another path")
    if name == "EIO":
        return Fatal(f"the disk failed: {text}", node=node, tried=path, remedy="Look at the node's kernel log")
    return StaleError(name, f"{op} failed: {text}", node=node, tried=path)


class StaleError(Transient):
    """The part file is not as it was left (gone, replaced, in use); survey it again."""

    def __init__(self, name: str, what: str, *, node: str, tried: str) -> None:
        super().__init__(what, node=node, tried=tried)
        self.name = name
