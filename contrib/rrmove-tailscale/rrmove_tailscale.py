"""Hooks for rrmove that know a tailnet: its peers are nodes, and nodes that are peers get their addresses there."""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import rrmove

PATIENCE = 2.0  # s; the daemon answers in 20 ms, and rrmove waits for 3 s


@dataclass(frozen=True, slots=True)
class Peer:
    """A machine of the tailnet: its short name, all that it is called, its addresses, its tags without `tag:`."""

    name: str
    called: frozenset[str]
    addresses: tuple[str, ...]
    tags: frozenset[str]
    dns: str | None = None  # the name that resolves here, where MagicDNS is on


@rrmove.hookimpl
def rrmove_nodes() -> list[rrmove.Node]:
    """Give every peer that is online as a node, with the tag `tailscale` and those that it has in the tailnet."""
    return [node(peer) for peer in peers(status())]


@rrmove.hookimpl
def rrmove_addresses(node: rrmove.Node) -> list[rrmove.Address]:
    """Give the addresses in the tailnet of a node that is a peer, by any of the names that both have."""
    known = {node.name, node.ssh.host, *(address.host for address in node.addresses)}
    words = {word.lower().rstrip(".") for word in known if word}
    found = [peer for peer in peers(status()) if words & peer.called]
    if len(found) != 1:  # a stranger; or two machines of one name, and who could tell which is meant
        return []
    return [rrmove.Address(host, "tailscale") for host in found[0].addresses]


def node(peer: Peer) -> rrmove.Node:
    """Make a node of a peer."""
    return rrmove.Node(
        name=peer.name,
        addresses=tuple(rrmove.Address(host, "tailscale") for host in peer.addresses),
        ssh=rrmove.SSHSettings(host=peer.dns or peer.addresses[0]),
        tags=peer.tags | {"tailscale"},
    )


def status() -> object:
    """Ask the daemon. None where there is no tailscale here. Raises OSError or TimeoutExpired where it does not answer.

    rrmove says so once, and goes on without.
    """
    program = shutil.which("tailscale")
    if program is None:
        return None
    done = subprocess.run([program, "status", "--json"], capture_output=True, timeout=PATIENCE, check=False)
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise OSError(f"tailscale status: {words[-1] if words else f'exit status {done.returncode}'}")
    return json.loads(done.stdout)


def peers(answer: object) -> tuple[Peer, ...]:
    """Read what `tailscale status --json` says, as it has been since 1.8: the peers that are online. Pure.

    What is not as expected is left out; a daemon that is stopped or logged out has no peers.
    """
    if not isinstance(answer, dict) or answer.get("BackendState") != "Running":
        return ()
    tailnet = answer.get("CurrentTailnet")
    magic = isinstance(tailnet, dict) and tailnet.get("MagicDNSEnabled") is True
    entries = answer.get("Peer")
    found = [_peer(entry, magic=magic) for entry in (entries.values() if isinstance(entries, dict) else ())]
    return tuple(sorted(filter(None, found), key=lambda peer: peer.name))


def _peer(entry: Any, *, magic: bool) -> Peer | None:
    if not isinstance(entry, dict) or entry.get("Online") is not True:
        return None
    addresses = tuple(word for word in entry.get("TailscaleIPs") or () if _is_address(word))
    dns = str(entry.get("DNSName") or "").lower().rstrip(".")
    host = str(entry.get("HostName") or "").lower()
    name = dns.partition(".")[0] or host  # the DNS name is unique in a tailnet, the host name is not
    if not addresses or not name or not name.replace("-", "").replace("_", "").isalnum():
        return None
    tags = frozenset(str(tag).removeprefix("tag:") for tag in entry.get("Tags") or ())
    called = frozenset(filter(None, (name, dns, host, *addresses)))
    return Peer(name, called, addresses, tags, dns if magic and dns else None)


def _is_address(word: object) -> bool:
    try:
        return isinstance(word, str) and bool(ipaddress.ip_address(word))
    except ValueError:
        return False
