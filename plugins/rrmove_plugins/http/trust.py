"""Whether bytes may travel in the clear: one switch, and the networks that encrypt or never leave the machine."""

from __future__ import annotations

import ipaddress
import os

SWITCH = "RRMOVE_HTTP_TLS"  # "off": plain HTTP everywhere; "on": TLS even where it is not needed
_TAILSCALE = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))


def plain_allowed(address: str) -> bool:
    """Tell whether plain HTTP will do towards an IP address.

    TLS is the rule. Plain HTTP serves within this machine and over Tailscale, which encrypts by itself, and
    wherever the switch says so: it is faster, and a token and the file's content could be overheard.
    """
    asked = os.environ.get(SWITCH, "").strip().lower()
    if asked:
        return asked in {"off", "no", "false", "0"}
    try:
        number = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(number, "ipv4_mapped", None)
    number = mapped or number
    return number.is_loopback or any(number in network for network in _TAILSCALE)
