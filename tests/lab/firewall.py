"""What a node's packets meet: nftables rules that close ports, cut connections at a volume, and count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tests.lab.profiles import Profile

SSH_PORT = 22
TABLE = "inet lab"


@dataclass(frozen=True, slots=True)
class Ports:
    """Which ports a node lets in, and how the others answer."""

    open_ports: tuple[int, ...] = ()
    closed: Literal["drop", "reject"] = "drop"
    ssh: bool = True
    only_from: str | None = None
    """The one address that may come in: that of the jump host."""


def port_rules(ports: Ports) -> str:
    """Return the rules for new connections; established ones never come to them."""
    source = f"ip saddr {ports.only_from} " if ports.only_from else ""
    numbers = ", ".join(str(port) for port in ([SSH_PORT] if ports.ssh else []) + list(ports.open_ports))
    rules = [f"{source}{protocol} dport {{ {numbers} }} accept" for protocol in ("tcp", "udp") if numbers]
    rules.append(f"{source}icmp type echo-request accept")
    if ports.closed == "reject":
        rules += ["meta l4proto tcp reject with tcp reset", "reject"]
    else:
        rules.append("drop")
    return "\n".join(f"add rule {TABLE} ports {rule}" for rule in rules)


def change_ports(ports: Ports) -> str:
    """Return what replaces the rules for new connections, in one transaction."""
    return f"flush chain {TABLE} ports\n{port_rules(ports)}\n"


def ruleset(profile: Profile, ports: Ports) -> str:
    """Return a node's whole ruleset.

    `connects` counts SSH connections asked for; `cuts` those that were cut at a volume, each once.
    """
    hasty = ""
    if profile.connects_per_minute:
        limit = f"limit rate over {profile.connects_per_minute}/minute burst {profile.connects_per_minute} packets"
        hasty = f"tcp dport {SSH_PORT} ct state new add @hasty {{ ip saddr {limit} }} reject with tcp reset"
    cut = ""
    if profile.reset_bytes:
        # Counted at the node's end, so that what is still on its way there does not count
        cut = f"""
    tcp dport {SSH_PORT} ct bytes > {profile.reset_bytes} ct mark != 1 ct mark set 1 counter name cuts
    tcp dport {SSH_PORT} ct mark 1 reject with tcp reset"""
    return f"""
table {TABLE} {{
  counter connects {{ }}
  counter cuts {{ }}
  set silent {{ type ipv4_addr . inet_service; flags timeout; timeout 10m; }}
  set hasty {{ type ipv4_addr; flags dynamic; }}
  chain ports {{ }}
  chain input {{
    type filter hook input priority 0; policy accept;
    iif lo accept
    ip saddr . tcp sport @silent drop
    tcp dport {SSH_PORT} ct state new counter name connects
    {hasty}{cut}
    ct state established,related accept
    jump ports
  }}
  chain output {{
    type filter hook output priority 0; policy accept;
    oif lo accept
    ip daddr . tcp dport @silent drop
    {"" if profile.routes_back else "ct state new drop"}
  }}
}}
{port_rules(ports)}
"""
