"""Swimmer: runs on the node; a libtorrent there that is ours alone, and ends with us.

Python 3.6 or newer and libtorrent 1.2 or newer; streamed behind `leased.py`. It answers the same
questions as `tracker.py` does for aria2c, and needs no tracker: we tell it of its peers.
"""

import base64
import errno
import json
import os
import time

PAUSE = 3.0  # s between two calls to the same peer, at first
FLUSHED = 1.5  # s that a disk may take to say that it has everything; the core looks itself in any case


class Swimmer:
    def __init__(self, given, folder):
        self.given, self.folder = given, folder
        self.session, self.torrent, self.trouble = None, None, None
        self.pieces = 0
        self.known, self.last, self.flushed, self.failed = {}, None, False, None

    def begin(self):
        given = self.given
        os.symlink(given["part"].encode("utf-8", "surrogateescape"), os.path.join(self.folder, "file").encode())
        try:
            import libtorrent as lt

            self.lt = lt
            resume = {
                b"file-format": b"libtorrent resume file",
                b"file-version": 1,
                b"info-hash": base64.b64decode(given["info_hash"]),
                b"pieces": base64.b64decode(given["pieces"]),
            }
            wanted = lt.read_resume_data(lt.bencode(resume))
            wanted.ti = lt.torrent_info(lt.bdecode(base64.b64decode(given["torrent"])))
            wanted.save_path = self.folder
            flags = lt.torrent_flags
            wanted.flags = (wanted.flags | flags.update_subscribe) & ~(flags.auto_managed | flags.paused)
            pack = dict(given["pack"])
            kinds = lt.alert.category_t
            pack["alert_mask"] = int(kinds.storage_notification) | int(kinds.error_notification)
            self.session = lt.session(pack)
            self.torrent = self.session.add_torrent(wanted)
        except Exception as error:
            self.trouble = "libtorrent on the node cannot start: %s: %s" % (type(error).__name__, error)

    def end(self):
        pass  # it is within this process

    def answer(self, question):
        if self.trouble:
            return json.dumps({"ended": self.trouble}).encode("ascii")
        asked = json.loads(question.decode("ascii"))
        now = time.monotonic()
        for host, port in asked["peers"]:
            due, pause = self.known.get((host, port), (0.0, PAUSE))
            if now > due:  # ever more seldom: whom it is calling it does not let in; one that is there is no trouble
                self.known[host, port] = (now + pause, 1.5 * pause)
                self.torrent.connect_peer((host, port))
        limit = int(self.given["options"]["max-overall-download-limit"])
        self.torrent.set_download_limit(limit)
        self.listen()
        status = self.torrent.status()
        told = {
            "port": self.session.listen_port(),
            "there": self.written(status, now) * self.given["piece"],
            "got": status.total_payload_download,
            "whole": status.is_seeding and self.on_disk(now),
            "uploaded": status.total_payload_upload,
            "peers": self.met(),
        }
        failed = status.errc if status.errc.value() else self.failed
        if failed is not None:
            told["code"], told["message"] = 0, failed.message()
            told["full"] = failed.value() in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return json.dumps(told).encode("ascii")

    def written(self, status, now):
        """Count the pieces on the disk: those of the last look, as one that was just hashed may not be written yet."""
        before, self.pieces = self.pieces, status.num_pieces
        return self.pieces if status.is_seeding and self.on_disk(now) else before

    def met(self):
        """Count those with whom it has got beyond the handshake."""
        pending = int(self.lt.peer_info.handshake) | int(self.lt.peer_info.connecting)
        return sum(not int(peer.flags) & pending for peer in self.torrent.get_peer_info())

    def listen(self):
        """Hear of what was written, and of what could not be: then it stops fetching, and says no more."""
        for alert in self.session.pop_alerts():
            if isinstance(alert, self.lt.cache_flushed_alert):
                self.flushed = True
            elif isinstance(alert, self.lt.file_error_alert):
                self.failed = alert.error

    def on_disk(self, now):
        """Tell whether what it has is written; the first to ask has it written."""
        if self.last is None:
            self.last, self.flushed = now, False
            self.torrent.flush_cache()
        return self.flushed or now - self.last > FLUSHED
