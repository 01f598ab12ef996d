"""The puller: what a node runs to fetch ranges from us, streamed there over the login's stdin.

One file, standard library only, Python 3.6 or newer; nothing is installed and nothing stays. It opens the part
file (an existing regular file, no symbolic link), says `pulling`, and goes on by itself, whatever becomes of the
login: until all pieces are there, or until nobody serves them any more. Its last request is a DELETE, with
X-Trouble where something was in the way.
"""

import errno
import hashlib
import http.client
import os
import stat
import sys
import threading
import time

PATIENCE = 4.0  # s without a byte, after which a connection is dead
WRONG = 4  # times that a piece may arrive altered
FAULTS = 8  # connections in a row that break without a piece
BLOCK = 1 << 20


class Hopeless(Exception):
    """There is no sense in going on; the text says why."""


class Puller:
    def __init__(self, told, fd):
        self.told, self.fd = told, fd
        self.pieces = list(reversed(told["pieces"]))
        self.left = len(self.pieces)
        self.wrong = {}
        self.faults = 0
        self.trouble = None
        self.guard = threading.Lock()

    def connect(self):
        host, port = self.told["host"], self.told["port"]
        if not self.told["fingerprint"]:
            return http.client.HTTPConnection(host, port, timeout=PATIENCE)
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if hasattr(ssl, "PROTOCOL_TLS_CLIENT") else ssl.PROTOCOL_TLS)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the fingerprint says more than a name
        connection = http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=context)
        connection.connect()
        shown = hashlib.sha256(connection.sock.getpeercert(True)).hexdigest()
        if shown != self.told["fingerprint"]:
            connection.close()
            raise Hopeless("the server shows another certificate: somebody is in between")
        return connection

    def take(self):
        with self.guard:
            return self.pieces.pop() if self.pieces and self.trouble is None else None

    def work(self):
        buffer = memoryview(bytearray(BLOCK))
        connection = None
        try:
            while True:
                piece = self.take()
                if piece is None:
                    return
                try:
                    connection = connection or self.connect()
                    self.fetch(connection, piece, buffer)
                except ConnectionRefusedError:
                    raise Hopeless("nobody serves any more")
                except (OSError, http.client.HTTPException, ValueError) as error:
                    if connection is not None:
                        connection.close()
                    connection = None
                    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        raise Hopeless("disk: %s" % error.strerror)
                    self.broken(piece, error)
        except Hopeless as error:
            self.trouble = self.trouble or str(error)
        finally:
            if connection is not None:
                connection.close()

    def broken(self, piece, error):
        with self.guard:
            self.pieces.append(piece)
            self.faults += 1
            if self.faults > FAULTS:
                raise Hopeless("the connection broke again and again: %s" % (error or type(error).__name__))
        time.sleep(0.05)

    def fetch(self, connection, piece, buffer):
        start, stop, digest = piece
        wanted = "bytes=%d-%d" % (start, stop - 1)
        token = "Bearer %s" % self.told["token"]
        connection.request("GET", self.told["path"], headers={"Authorization": token, "Range": wanted})
        answer = connection.getresponse()
        if answer.status != 206 or answer.getheader("Content-Range") != "bytes %d-%d/%d" % (
            start,
            stop - 1,
            self.told["size"],
        ):
            raise Hopeless("the server does not give ranges: it answered %d to %s" % (answer.status, wanted))
        sha = hashlib.sha256() if digest else None
        at = start
        while at < stop:
            got = answer.readinto(buffer[: min(BLOCK, stop - at)])
            if not got:
                raise ValueError("the body was cut short")
            view = buffer[:got]
            if sha is not None:
                sha.update(view)
            while view:
                wrote = os.pwrite(self.fd, view, at)
                at += wrote
                view = view[wrote:]
        answer.read()
        with self.guard:
            if sha is not None and sha.hexdigest() != digest:
                self.wrong[start] = self.wrong.get(start, 0) + 1
                if self.wrong[start] >= WRONG:
                    raise Hopeless("wrong: bytes %d to %d arrive altered again and again" % (start, stop))
                self.pieces.append(piece)
                return
            self.faults = 0
            self.left -= 1

    def run(self):
        while self.left and self.trouble is None:  # a piece may come back while the last threads end
            threads = [threading.Thread(target=self.work, daemon=True) for _ in range(self.told["streams"])]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def goodbye(self):
        fields = {"Authorization": "Bearer %s" % self.told["token"]}
        if self.trouble is not None:
            fields["X-Trouble"] = "".join(c if " " <= c <= "~" else "?" for c in self.trouble)[:200]
        try:
            connection = self.connect()
            connection.request("DELETE", self.told["path"], headers=fields)
            connection.getresponse().read()
            connection.close()
        except (OSError, http.client.HTTPException, ValueError, Hopeless):
            pass  # nobody is there to hear it


def main(told):
    fd = os.open(told["file"].encode("utf-8", "surrogateescape"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    sys.stdout.write("pulling\n")
    sys.stdout.flush()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    try:
        puller = Puller(told, fd)
        puller.run()
        puller.goodbye()
    finally:
        os._exit(0)
