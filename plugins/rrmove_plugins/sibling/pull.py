"""Pull: runs on the node; fetches pieces of a file from a sibling, as that has them, while our lease holds.

Standard library only, Python 3.6 or newer; it is streamed behind `leased.py`, as the duty of a leased program.
From whom to fetch, our questions say, and the next one may name another. Each piece is taken into memory, compared
with its digest, and only then written: so what is in the part file and is no hole may be given on at once. What the
giver does not have yet is asked for again.

A question is JSON: `giver` (or null), with `id`, host, port, path, token and fingerprint; and `wait`, the seconds
within which the answer may wait for news. The answer: `left` pieces, bytes `got` so far, `failed` givers by id with
the reason, and `trouble` where there is no sense in going on.
"""

import errno
import hashlib
import http.client
import json
import os
import socket
import ssl
import stat
import threading
import time

PATIENCE = 4.0  # s without a byte, after which a giver is given up
FAULTS = 4  # connections in a row that break without a piece
WRONG = 3  # times that a piece may arrive altered from a giver that has verified its file
POLL = 0.1  # s between two looks at what a giver has
LATER = 0.5  # s until a piece is asked for again that was not there as a whole
BLOCK = 1 << 18


class Pull:
    def __init__(self, given, folder):
        self.given = given
        self.left = [tuple(piece) for piece in given["pieces"]]
        self.busy, self.later, self.wrong = set(), {}, {}
        self.giver, self.failed, self.faults = None, {}, {}
        self.spans, self.whole, self.looked = [], False, 0.0
        self.got, self.trouble, self.over = 0, None, False
        self.news = threading.Condition()
        self.paid = time.monotonic()
        self.fd = -1

    def begin(self):
        path = self.given["file"].encode("utf-8", "surrogateescape")
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            if not stat.S_ISREG(os.fstat(self.fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
        except OSError as error:
            self.trouble = "it cannot be opened: %s" % error.strerror
            return
        for _ in range(self.given["streams"]):
            threading.Thread(target=self.work, daemon=True).start()

    def answer(self, question):
        told = json.loads(question.decode("ascii"))
        until = time.monotonic() + told["wait"]
        with self.news:
            known = (self.got, len(self.failed))
            if told["giver"] != self.giver:
                self.giver, self.spans, self.whole, self.looked = told["giver"], [], False, 0.0
                self.news.notify_all()
            while self.left and self.trouble is None and known[1] == len(self.failed):
                pause = until - time.monotonic()
                if pause <= 0:
                    break
                self.news.wait(pause)
            said = {
                "left": len(self.left) + len(self.busy),
                "got": self.got,
                "failed": self.failed,
                "trouble": self.trouble,
            }
        return json.dumps(said).encode("ascii")

    def end(self):
        with self.news:
            self.over = True
            self.news.notify_all()

    # The threads

    def work(self):
        connection, of = None, None
        while True:
            with self.news:
                while not self.over and self.trouble is None and not self.usable():
                    self.news.wait(0.5)
                if self.over or self.trouble is not None or not (self.left or self.busy):
                    return
                giver = self.giver
            try:
                if connection is None or of != giver["id"]:
                    if connection is not None:
                        connection.close()
                    connection, of = self.connect(giver), giver["id"]
                self.step(connection, giver)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if connection is not None:
                    connection.close()
                connection = None
                self.broken(giver, error)
            except Stranger as error:
                connection = None
                self.fail(giver, str(error))

    def usable(self):
        return self.giver is not None and self.giver["id"] not in self.failed and (self.left or self.busy)

    def connect(self, giver):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if hasattr(ssl, "PROTOCOL_TLS_CLIENT") else ssl.PROTOCOL_TLS)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the fingerprint says more than a name
        connection = http.client.HTTPSConnection(giver["host"], giver["port"], timeout=PATIENCE, context=context)
        connection.connect()
        if hashlib.sha256(connection.sock.getpeercert(True)).hexdigest() != giver["fingerprint"]:
            connection.close()
            raise Stranger("who answers shows another certificate")
        return connection

    def step(self, connection, giver):
        """Fetch one piece that the giver has; where there is none, look what it has by now."""
        piece = self.take(giver)
        if piece is not None:
            good = False
            try:
                good = self.fetch(connection, giver, piece)
            finally:
                self.put_back(giver, piece, good)
            return
        with self.news:
            pause = self.looked + POLL - time.monotonic()
            mine = pause <= 0
            if mine:
                self.looked = time.monotonic()
            else:
                self.news.wait(pause)
        if mine:
            self.look(connection, giver)

    def take(self, giver):
        now = time.monotonic()
        with self.news:
            if self.giver is None or self.giver["id"] != giver["id"]:
                return None
            for place, piece in enumerate(self.left):
                start, stop = piece[0], piece[1]
                if self.later.get(start, 0.0) > now:
                    continue
                if self.whole or any(first <= start and stop <= last for first, last in self.spans):
                    self.busy.add(piece)
                    return self.left.pop(place)
        return None

    def put_back(self, giver, piece, good):
        with self.news:
            self.busy.discard(piece)
            if good:
                self.got += piece[1] - piece[0]
                self.faults[giver["id"]] = 0
            else:
                self.left.append(piece)
                self.left.sort()
            if not self.left:
                self.news.notify_all()

    def look(self, connection, giver):
        connection.request("GET", giver["path"], headers={"Authorization": "Bearer %s" % giver["token"], "X-Have": "1"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ValueError("it answered %d" % answer.status)
        said = json.loads(body.decode("ascii"))
        with self.news:
            if self.giver is not None and self.giver["id"] == giver["id"]:
                self.spans, self.whole = said["spans"], said["whole"]
                self.faults[giver["id"]] = 0

    def fetch(self, connection, giver, piece):
        """Fetch one piece and write it; false where it is not there yet, or arrived altered."""
        start, stop, digest = piece
        fields = {"Authorization": "Bearer %s" % giver["token"], "Range": "bytes=%d-%d" % (start, stop - 1)}
        connection.request("GET", giver["path"], headers=fields)
        answer = connection.getresponse()
        if answer.status == 503:
            answer.read()
            self.later[start] = time.monotonic() + LATER
            return False
        span = "bytes %d-%d/%d" % (start, stop - 1, self.given["size"])
        if answer.status != 206 or answer.getheader("Content-Range") != span:
            raise ValueError("it answered %d" % answer.status)
        buffer, done = memoryview(bytearray(stop - start)), 0
        while done < stop - start:
            got = answer.readinto(buffer[done : done + BLOCK])
            if not got:
                raise ValueError("the body was cut short")
            done += got
            self.pay(got)
        answer.read()
        if hashlib.sha256(buffer).hexdigest() != digest:
            self.altered(giver, start)
            return False
        self.write(buffer, start)
        return True

    def altered(self, giver, start):
        """Of a file that is still growing it is no news; one that is whole should have it right."""
        self.later[start] = time.monotonic() + LATER
        if self.whole:
            key = (giver["id"], start)
            self.wrong[key] = self.wrong.get(key, 0) + 1
            if self.wrong[key] >= WRONG:
                self.fail(giver, "what comes from it is altered again and again")

    def write(self, view, at):
        try:
            while view:
                wrote = os.pwrite(self.fd, view, at)
                at += wrote
                view = view[wrote:]
        except OSError as error:
            with self.news:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                self.trouble = ("disk: " if full else "writing: ") + (error.strerror or str(error))
                self.news.notify_all()
            raise

    def pay(self, count):
        """Keep to the node's own limit."""
        rate = self.given["rate"]
        if rate:
            with self.news:
                self.paid = max(self.paid, time.monotonic() - 0.1) + count / rate
                pause = self.paid - time.monotonic()
            if pause > 0:
                time.sleep(pause)

    def broken(self, giver, error):
        many = self.faults.get(giver["id"], 0) + 1
        self.faults[giver["id"]] = many
        # Nobody listens any more, or nothing was heard for as long as anybody should wait; else it is tried again.
        if isinstance(error, (ConnectionRefusedError, socket.timeout)) or many > FAULTS:
            self.fail(giver, str(error) or type(error).__name__)
        else:
            time.sleep(0.05 * many)

    def fail(self, giver, why):
        with self.news:
            self.failed[giver["id"]] = why
            self.news.notify_all()


class Stranger(Exception):
    """Who answers is not who was meant."""
