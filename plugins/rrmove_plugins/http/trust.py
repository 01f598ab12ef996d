"""Whether bytes may travel in the clear: the one setting of this transport, and the networks that encrypt anyway."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rrmove import Job

_TAILSCALE = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """What can be said to `http`: `-o http.tls=off`, `RRMOVE_HTTP_TLS`, or `[transports.http]` of the inventory."""

    tls: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata={"help": "auto: plain HTTP within this machine and over Tailscale; off: everywhere; on: nowhere"},
    )


def tls_of(job: Job) -> str:
    """Say what the user has asked for, for this job."""
    return job.request.settings.get(HttpSettings).tls


def plain_allowed(address: str, tls: str = "auto") -> bool:
    """Tell whether plain HTTP will do towards an IP address.

    TLS is the rule. Plain HTTP serves within this machine and over Tailscale, which encrypts by itself, and
    wherever the setting says so: it is faster, and a token and the file's content could be overheard.
    """
    if tls != "auto":
        return tls == "off"
    try:
        number = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(number, "ipv4_mapped", None)
    number = mapped or number
    return number.is_loopback or any(number in network for network in _TAILSCALE)
