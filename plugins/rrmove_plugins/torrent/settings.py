"""What can be said to `torrent`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class TorrentSettings:
    """`-o torrent.dht=on`, `RRMOVE_TORRENT_DHT`, or `[transports.torrent]` of the inventory; frozen."""

    client: Literal["auto", "aria2c", "libtorrent"] = field(
        default="auto", metadata={"help": "what runs on the node; auto: libtorrent where it is there, else aria2c"}
    )
    encryption: bool = field(
        default=True, metadata={"help": "refuse peers that do not encrypt; off: both are taken, and plain is faster"}
    )
    port: int = field(default=0, metadata={"help": "the port on which we listen for the nodes; 0: any that is free"})
    dht: bool = field(default=False, metadata={"help": "announce the torrent in the public DHT; it is private without"})
    lsd: bool = field(default=False, metadata={"help": "announce it in local networks by multicast"})
    upnp: bool = field(default=False, metadata={"help": "ask the router here to let nodes in (UPnP, NAT-PMP)"})

    def __post_init__(self) -> None:
        """Refuse a port that is none."""
        if not 0 <= self.port <= 65535:
            raise ValueError("port must be within 0 and 65535")


__all__ = ["TorrentSettings"]
