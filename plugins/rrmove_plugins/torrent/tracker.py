"""Tracker: runs on the node, beside its aria2c, which asks it for peers; they are told to it over the login.

Standard library only, Python 3.6 or newer; streamed behind `leased.py` and aria2c's `warden.py`. It
listens on the loopback, at a random path, for one info hash, and knows only whom we have told it: so
a swarm needs no port of a tracker that anybody could find, and each node hears of the others as long
as we can log in to it.

A question is JSON: `peers`, as [host, port]; the answer is how far aria2c is.
"""

import base64
import json
import os
import socket
import sys
import threading
import urllib.parse

AGAIN = 1  # s after which aria2c asks for peers again: the way is short
SPAN = 118  # ports above the node's own that are taken where that is taken
HEAD = 16384  # bytes of a request
KEYS = ["status", "completedLength", "seeder", "uploadLength", "connections", "errorCode", "errorMessage"]


class Tracker:
    def __init__(self, warden):
        self.warden, self.given = warden, warden.given
        self.info_hash = base64.b64decode(self.given["info_hash"]).decode("latin-1")
        self.peers = b"5:peers0:"
        self.port, self.claimed = 0, None
        self.listener = socket.socket()

    def begin(self):
        given, warden = self.given, self.warden
        self.tell(given["peers"])
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(8)
        threading.Thread(target=self.keep, daemon=True).start()
        torrent = os.path.join(warden.folder, "torrent")
        with open(torrent, "wb") as out:
            out.write(base64.b64decode(given["torrent"]))
        here = "http://127.0.0.1:%d%s" % (self.listener.getsockname()[1], given["path"])
        self.port = self.free(given["port"])
        warden.more = {
            "bt-tracker": here,
            "bt-tracker-interval": str(AGAIN),
            "gid": given["gid"],
            "listen-port": str(self.port),
        }
        if "dht-listen-port" in given["options"]:
            warden.more["dht-file-path"] = os.path.join(warden.folder, "dht")
            warden.more["dht-file-path6"] = os.path.join(warden.folder, "dht6")
        warden.words = [torrent]
        warden.begin()

    def free(self, port):
        """Choose the port, or one above it: aria2c itself takes any of those that it is given."""
        for each in range(port, min(65535, port + SPAN) + 1):
            claim, trial = socket.socket(socket.AF_UNIX), socket.socket()
            try:
                if sys.platform.startswith("linux"):
                    claim.bind("\0rrmove-torrent-%d" % each)  # others of ours have not begun to listen yet
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(("", each))
            except OSError:
                claim.close()
                continue
            finally:
                trial.close()
            self.claimed = claim
            return each
        return port

    def end(self):
        self.warden.end()

    def answer(self, question):
        asked = json.loads(question.decode("ascii"))
        self.tell(asked["peers"])
        call = {
            "jsonrpc": "2.0",
            "id": "1",
            "method": "aria2.tellStatus",
            "params": ["token:" + self.given["secret"], self.given["gid"], KEYS],
        }
        said = json.loads(self.warden.forward(json.dumps(call).encode("ascii")).decode("utf-8", "replace"))
        if "result" not in said:
            return json.dumps({"ended": said["error"]["message"]}).encode("ascii")
        status = said["result"]
        told = {
            "port": self.port,
            "there": int(status["completedLength"]),
            "got": int(status["completedLength"]),
            "whole": status.get("seeder") == "true" or status["status"] == "complete",
            "uploaded": int(status["uploadLength"]),
            "peers": int(status["connections"]),
        }
        if status["status"] in ("error", "removed"):
            told["code"], told["message"] = int(status.get("errorCode", 1)), status.get("errorMessage", "")
        return json.dumps(told).encode("ascii")

    # What aria2c asks

    def tell(self, peers):
        """Take the list of peers in, in the form in which it is asked for (BEP 23, BEP 7)."""
        four, six = b"", b""
        for host, port in peers:
            end = bytes((port >> 8, port & 255))
            if ":" in host:
                six += socket.inet_pton(socket.AF_INET6, host) + end
            else:
                four += socket.inet_pton(socket.AF_INET, host) + end
        self.peers = b"5:peers%d:%b6:peers6%d:%b" % (len(four), four, len(six), six)

    def keep(self):
        while True:
            asked, _ = self.listener.accept()
            try:
                asked.settimeout(5)
                self.serve(asked)
            except (OSError, IndexError):
                pass  # it is none of ours, or aria2c has ended; that is told where we ask for it
            asked.close()

    def serve(self, asked):
        head = b""
        while b"\r\n\r\n" not in head and len(head) < HEAD:
            piece = asked.recv(HEAD)
            if not piece:
                return
            head += piece
        path, _, query = head.split(b" ", 2)[1].decode("latin-1").partition("?")
        words = urllib.parse.parse_qs(query, encoding="latin-1")
        if path != self.given["path"] or words.get("info_hash") != [self.info_hash]:
            status, body = b"404 Not Found", b""
        else:
            status, body = b"200 OK", b"d8:intervali%de%be" % (AGAIN, self.peers)
        asked.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body))
