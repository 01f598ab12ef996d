"""Our seeder: libtorrent with one torrent, the one place that imports it. Blocking; for a thread."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmove.errors import Unusable
from rrmove_plugins.torrent.metainfo import NAME

if TYPE_CHECKING:
    from rrmove_plugins.torrent.metainfo import Metainfo
    from rrmove_plugins.torrent.settings import TorrentSettings

BUFFER = 4 << 20  # bytes waiting to be sent to a peer: measured, 487 MB/s where the default gave 365
QUEUE = 2000  # blocks of 16 KiB that a peer may have asked for at a time
# What a node has asked us for it does not ask its siblings for: where there are several, little at a time. Measured,
# 64 MiB to eight over a line of 20 MB/s: we sent it 2.2 to 2.6 times with long queues, 1.4 times with short ones.
CROWD_BUFFER, CROWD_QUEUE, LEAST_QUEUE = 64 << 10, 128, 16
CONNECT = 2  # s that a connection may take to begin; whom it is calling libtorrent does not let in meanwhile
FORCED, EITHER = 0, 1  # libtorrent's enc_policy
RC4, BOTH = 2, 3  # libtorrent's enc_level
STARTING = 3.0  # s for it to look at the file


@dataclass(frozen=True, slots=True)
class Peer:
    """A connection of our seeder's: whose it is, by the beginning of the peer id, and what it was sent."""

    key: tuple[str, int]
    peer_id: bytes
    uploaded: int


class Seeder:
    """Seed one file to whoever knows the info hash, until `close()`. Raises Unusable where it cannot."""

    def __init__(self, path: Path, made: Metainfo, settings: TorrentSettings) -> None:
        try:
            import libtorrent
        except ImportError as error:
            raise Unusable(
                f"libtorrent cannot be loaded here: {error}",
                remedy="pip install --force-reinstall libtorrent, in the environment of rrmove",
            ) from error
        lt: Any = libtorrent
        self._lt = lt
        self._members = 1
        self.port = _free(settings.port)
        # libtorrent's paths are UTF-8, and ours need not be: it reads through a link.
        self._folder = Path(tempfile.mkdtemp(prefix="rrmove-seed-"))
        try:
            (self._folder / os.fsdecode(NAME)).symlink_to(path.absolute())
            self._session = lt.session(pack_for(self.port, settings, "-rrmove-"))
            wanted = lt.add_torrent_params()
            wanted.ti = lt.torrent_info(lt.bdecode(made.torrent))
            wanted.save_path = str(self._folder)
            flags = lt.torrent_flags
            # Its hashes were just made from the file: it need not be read once more before it is served.
            wanted.flags = flags.seed_mode | flags.upload_mode | flags.update_subscribe
            self._torrent = self._session.add_torrent(wanted)
            self._started()
        except BaseException as error:
            self._unlink()
            if isinstance(error, RuntimeError | OSError):
                raise Unusable(f"libtorrent cannot seed here: {error}") from error
            raise

    def _started(self) -> None:
        until = time.monotonic() + STARTING
        while not self._torrent.status().is_seeding and time.monotonic() < until:
            time.sleep(0.005)
        if not self._session.is_listening():
            raise OSError(f"port {self.port} cannot be listened on")

    def limit(self, rate: float | None) -> None:
        """Let no more bytes a second leave; None lifts it."""
        self._torrent.set_upload_limit(max(1, int(rate)) if rate is not None else 0)

    def crowd(self, members: int) -> None:
        """Suit itself to so many nodes that are to give each other what they have."""
        if members == self._members:
            return
        self._members = members
        alone = members <= 1
        buffer = BUFFER if alone else CROWD_BUFFER
        self._session.apply_settings(
            {
                "send_buffer_watermark": buffer,
                "send_buffer_low_watermark": buffer // 4,
                "max_allowed_in_request_queue": QUEUE if alone else max(LEAST_QUEUE, CROWD_QUEUE // members),
            }
        )

    def connect(self, host: str, port: int) -> None:
        """Begin a connection to a peer."""
        with contextlib.suppress(RuntimeError):  # an address that it cannot read: others are left
            self._torrent.connect_peer((host, port))

    def peers(self) -> list[Peer]:
        """Say who is connected."""
        lt = self._lt
        pending = lt.peer_info.handshake | lt.peer_info.connecting
        return [
            Peer((str(peer.ip[0]), int(peer.ip[1])), peer.pid.to_bytes(), int(peer.total_upload))
            for peer in self._torrent.get_peer_info()
            if not int(peer.flags) & int(pending)
        ]

    def uploaded(self) -> int:
        """Count the file's bytes that have left, to everybody."""
        return int(self._torrent.status().total_payload_upload)

    def trouble(self) -> str | None:
        """Say what stops it."""
        status = self._torrent.status()
        if status.errc.value():
            return str(status.errc.message())
        return None if status.is_seeding else "the file is not what its pieces were made from"

    def close(self) -> None:
        """Close every connection and the port; a repeat does nothing."""
        self._torrent = self._session = None  # the last reference: it waits for the end
        self._unlink()

    def _unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / os.fsdecode(NAME)).unlink()
        with contextlib.suppress(FileNotFoundError):
            self._folder.rmdir()


def _free(port: int) -> int:
    """Choose a port for both families, where none is asked for."""
    if port:
        return port
    with socket.socket() as chosen:
        chosen.bind(("", 0))
        return int(chosen.getsockname()[1])


def pack_for(port: int, settings: TorrentSettings, tag: str) -> dict[str, object]:
    """Give libtorrent's settings: one torrent, TCP only (uTP alone had a thirtieth of its rate), nothing announced."""
    return {
        "listen_interfaces": f"0.0.0.0:{port},[::]:{port}",
        "enable_dht": settings.dht,
        "enable_lsd": settings.lsd,
        "enable_upnp": settings.upnp,
        "enable_natpmp": settings.upnp,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        "allow_multiple_connections_per_ip": True,  # nodes behind one address
        "in_enc_policy": FORCED if settings.encryption else EITHER,
        "out_enc_policy": FORCED if settings.encryption else EITHER,
        "allowed_enc_level": RC4 if settings.encryption else BOTH,
        "unchoke_slots_limit": -1,
        "tick_interval": 100,  # ms; the default of 500 is when it looks whom to connect to and whom to serve
        "send_buffer_watermark": BUFFER,
        "send_buffer_low_watermark": BUFFER // 4,
        "max_allowed_in_request_queue": QUEUE,
        "whole_pieces_threshold": 1,  # s; not a block of each piece from everybody: 1.9 times became 1.4
        "min_reconnect_time": 1,
        "peer_connect_timeout": CONNECT,
        "peer_fingerprint": tag,
        "user_agent": "rrmove",
        "alert_mask": 0,
    }


__all__ = ["Peer", "Seeder", "pack_for"]
