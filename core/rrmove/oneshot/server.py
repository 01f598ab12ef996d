"""The one-shot server: one open file, at one path, for whoever has the token, for as long as it is wanted.

One file, standard library only, Python 3.6 or newer: it runs here to give a file away, and is streamed
to a node to receive one there. Blocking sockets, a thread for each connection, the kernel moves the
bytes where it can: measured twice as fast as an event loop, and with TLS more than that.

    GET, HEAD  PATH                     the file: Range (one), If-Range, ETag; 200, 206, 416
    PUT        PATH                     Content-Range: bytes A-B/SIZE, written at A; 204 without Content-Digest, or
                                        where it is right (sha-256), else 422: once more
    DELETE     PATH                     the client has done; the server ends. X-Trouble: why, where it has not

Every request needs `Authorization: Bearer TOKEN`; all else is 401, and does not count as life. A connection that
stands still for `patience` seconds is closed; a server with `idle` ends after so many seconds in which nobody who
has the token was connected. Whatever it is told, it reads and writes this one file.

Each byte can be written until a PUT that brought it was answered with 204, and never again, whatever is held up on
the way here: so what is read back after that answer stays so. What comes late is dropped, and answered with 204.
"""

import base64
import bisect
import errno
import fcntl
import hashlib
import hmac
import os
import select
import socket
import stat
import struct
import sys
import threading
import time

HEAD = 16384  # bytes that the head of a request may have
MOST = 64  # connections at a time
PIECE = 256 << 10  # bytes received at once: what stays in the cache is written twice as fast as with 1 MiB
SLICE = 1 << 18  # bytes sent at once: often enough to be seen on a slow link
PART, JOURNAL = ".rrmove-part", b".rrmove-journal"  # as the agent names them
REFUSE = {"disk": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}


class Rejected(Exception):
    """A request is answered with a status other than success, and the connection closed."""

    def __init__(self, status, text=""):
        Exception.__init__(self, text)
        self.status, self.text = status, text


def patient(connection, seconds, tls):
    """Let every call on a socket end after so many seconds.

    The kernel keeps the time where it moves the bytes (os.sendfile does not know of Python's timeout), Python
    where TLS does, which would go on over the kernel's.
    """
    connection.settimeout(seconds if tls else None)
    if tls:
        return
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1000000)))


def listening(host, port):
    """Listen on an address, "" for all of this machine's, of both families where there are two."""
    if host == "":
        try:
            listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            place = "::"
        except OSError:
            listener, place = socket.socket(socket.AF_INET, socket.SOCK_STREAM), ""
    else:
        family, kind, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener, place = socket.socket(family, kind), found[0]
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((place, port))
        except OSError as error:
            if place != "::" or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            listener.close()
            return listening("0.0.0.0", port)  # noqa: S104  it was asked for
        listener.listen(MOST)
    except OSError:
        listener.close()
        raise
    return listener


def context_of(certificate, key):
    """Make a TLS context of PEM texts. They touch no disk where Linux has memory files."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if hasattr(ssl, "PROTOCOL_TLS_SERVER") else ssl.PROTOCOL_TLS)
    if hasattr(ssl, "TLSVersion"):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:
        context.options |= ssl.OP_NO_SSLv2 | ssl.OP_NO_SSLv3 | ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    text = (certificate + key).encode("ascii")
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("certificate")
        try:
            os.write(fd, text)
            context.load_cert_chain("/proc/self/fd/%d" % fd)
        except OSError:
            pass  # no /proc here: a file that only we can read, for a moment
        else:
            return context
        finally:
            os.close(fd)
    import tempfile

    with tempfile.NamedTemporaryFile() as file:  # made with mode 0600
        file.write(text)
        file.flush()
        context.load_cert_chain(file.name)
    return context


class Unsealed:
    """What of a file may still be written: the spans that it was told, less those that were sealed since."""

    def __init__(self, spans):
        self.spans = sorted((start, stop) for start, stop in spans)  # apart from one another
        self.writing = []
        self.change = threading.Condition()

    def within(self, start, stop):
        """Where the spans are that touch these bytes, first and last, as indexes of a slice."""
        first = bisect.bisect_right(self.spans, (start, start))
        if first and self.spans[first - 1][1] > start:
            first -= 1
        last = first
        while last < len(self.spans) and self.spans[last][0] < stop:
            last += 1
        return first, last

    def write(self, fd, view, at):
        """Write bytes at their place, but for those that are sealed."""
        end = at + len(view)
        mine = (at, end)
        with self.change:
            first, last = self.within(at, end)
            spans = self.spans[first:last]
            self.writing.append(mine)
        try:
            for start, stop in spans:
                place, until = max(at, start), min(end, stop)
                while place < until:
                    place += os.pwrite(fd, view[place - at : until - at], place)
        finally:
            with self.change:
                self.writing.remove(mine)
                self.change.notify_all()

    def seal(self, start, stop):
        """Let nobody write these bytes from now on, and wait for whoever is at it."""
        with self.change:
            first, last = self.within(start, stop)
            kept = [(left, min(right, start)) for left, right in self.spans[first:last] if left < start]
            kept += [(max(left, stop), right) for left, right in self.spans[first:last] if right > stop]
            self.spans[first:last] = kept
            while any(left < stop and right > start for left, right in self.writing):
                self.change.wait()


class OneShot:
    """A server of one open file descriptor. `serve()` blocks until the client has done, nobody came, or `stop()`.

    `writable` says which way: to receive (the spans that may be written) or to give. `pay(count)` is called before
    so many bytes are sent, and may block or raise OSError; `moved(start, stop)` after they have left, `kept(start,
    stop)` once a client that got them has come back for more or ended well. `asked()` is called for each connection
    of somebody who has the token, `ended()` after a DELETE was answered; `slice` is how many bytes are sent at once.
    `visitor` may be another kind of Visit.
    """

    visitor = None

    def __init__(
        self, fd, path, token, listener, writable=None, context=None, idle=None, patience=15.0,
        pay=None, moved=None, kept=None,
    ):  # fmt: skip
        self.fd, self.path, self.token, self.listener = fd, path, token, listener
        self.unsealed = None if writable is None else Unsealed(writable)
        self.context, self.idle, self.patience = context, idle, patience
        self.pay, self.moved, self.kept = pay, moved, kept
        self.size = os.fstat(fd).st_size
        self.etag = '"%s"' % hashlib.sha256(("%s %d" % (token, self.size)).encode("utf-8")).hexdigest()[:16]
        self.done = threading.Event()
        self.asked = self.ended = None
        self.slice = SLICE
        self.trouble = None
        self.over = False
        self.guard = threading.Lock()
        self.open = set()
        self.known = 0  # connections of somebody who has the token
        self.last = time.time()

    def serve(self):
        self.last = time.time()
        try:
            while not self.done.is_set():
                ready = select.select([self.listener], [], [], 0.25)[0]
                if self.idle is not None and not self.known and time.time() - self.last > self.idle:
                    return
                if ready and len(self.open) < MOST:
                    self.accept()
        except (OSError, ValueError):
            if not self.done.is_set():  # else the listener was closed to wake us
                raise
        finally:
            self.stop()
            self.over = True

    def accept(self):
        try:
            connection = self.listener.accept()[0]
        except OSError as error:
            if error.errno not in (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.EAGAIN):
                raise
            time.sleep(0.01)
            return
        with self.guard:
            self.open.add(connection)
        threading.Thread(target=self.visit, args=(connection,), daemon=True).start()

    def stop(self):
        """Close everything; a repeat does nothing."""
        self.done.set()
        self.listener.close()
        with self.guard:
            for connection in self.open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has ended by itself

    def join(self):
        """Wait until no thread uses the file any more; the connections are closed already."""
        while self.open or not self.over:
            time.sleep(0.002)

    def visit(self, raw):
        connection, visit = raw, None
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            patient(raw, self.patience, self.context is not None)
            if self.context is not None:
                connection = self.context.wrap_socket(raw, server_side=True)
            visit = (self.visitor or Visit)(self, connection)
            while visit.request() and not self.done.is_set():
                pass
        except (OSError, ValueError):
            pass  # the connection has ended, or whoever it was does not speak our language
        finally:
            connection.close()
            raw.close()
            with self.guard:
                self.open.discard(raw)
                if visit is not None and visit.known:
                    self.known -= 1
                    self.last = time.time()

    def knows(self, visit):
        with self.guard:
            self.last = time.time()
            if not visit.known:
                visit.known = True
                self.known += 1
                if self.asked is not None:
                    self.asked()


class Visit:
    """One connection: its requests, one after the other."""

    def __init__(self, server, connection):
        self.server, self.connection, self.known = server, connection, False
        self.plain = not hasattr(connection, "cipher")
        self.ahead = b""
        self.buffer = None
        self.given = None

    def request(self):
        """Answer one request; False where the connection ends."""
        head = self.head()
        if head is None:
            self.came_back()
            return False
        try:
            method, target, fields = head
            offered = fields.get("authorization", "").encode("utf-8", "replace")
            if not hmac.compare_digest(offered, b"Bearer " + self.server.token.encode("ascii")):
                raise Rejected(401)
            self.server.knows(self)
            if target != self.server.path:
                raise Rejected(404)
            self.came_back()
            if method in ("GET", "HEAD") and self.server.unsealed is None:
                self.get(method, fields)
            elif method == "PUT" and self.server.unsealed is not None:
                self.put(fields)
            elif method == "DELETE":
                self.server.trouble = fields.get("x-trouble")
                self.answer(204)
                if self.server.ended is not None:
                    self.server.ended()
                self.server.stop()
                return False
            else:
                raise Rejected(405)
        except Rejected as error:
            self.answer(error.status, [("Connection", "close")], error.text.encode("utf-8", "replace"))
            return False
        return fields.get("connection", "").lower() != "close"

    def came_back(self):
        """Whoever got a range wants more, or closed the connection with nothing unread: so it has what it got."""
        if self.given is not None and self.server.kept is not None:
            self.server.kept(*self.given)
        self.given = None

    def head(self):
        while b"\r\n\r\n" not in self.ahead:
            if len(self.ahead) > HEAD:
                raise ValueError("no head of a request is that long")
            more = self.connection.recv(HEAD)
            if not more:
                return None
            self.ahead += more
        head, _, self.ahead = self.ahead.partition(b"\r\n\r\n")
        first, _, rest = head.decode("latin-1").partition("\r\n")
        method, target, _ = first.split(" ", 2)
        fields = {}
        for line in rest.split("\r\n") if rest else ():
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip()
        return method, target, fields

    def answer(self, status, fields=(), body=b"", length=None):
        lines = ["HTTP/1.1 %d %s" % (status, WORDS.get(status, "")), "Server: rrmove"]
        if status != 204:
            lines.append("Content-Length: %d" % (len(body) if length is None else length))
        lines += ["%s: %s" % pair for pair in fields]
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    # Giving

    def get(self, method, fields):
        size = self.server.size
        start, stop, part = 0, size, False
        wanted = fields.get("range", "")
        if wanted and fields.get("if-range", self.server.etag) == self.server.etag:
            span = span_of(wanted, size)
            if span is not None:
                start, stop, part = span[0], span[1], True
                if start >= stop:
                    self.answer(416, [("Content-Range", "bytes */%d" % size)])
                    return
        also = [("Accept-Ranges", "bytes"), ("ETag", self.server.etag), ("Content-Type", "application/octet-stream")]
        if part:
            also.append(("Content-Range", "bytes %d-%d/%d" % (start, stop - 1, size)))
        self.answer(206 if part else 200, also, length=stop - start)
        if method == "GET":
            self.give(start, stop)
            self.given = (start, stop)

    def give(self, start, stop):
        server, at = self.server, start
        while at < stop:
            step = min(server.slice, stop - at)
            if server.pay is not None:
                server.pay(step)
            if self.plain:
                sent = os.sendfile(self.connection.fileno(), server.fd, at, step)
            else:
                data = os.pread(server.fd, step, at)
                self.connection.sendall(data)
                sent = len(data)
            if not sent:
                raise ValueError("the file has become shorter")
            at += sent
            if server.moved is not None:
                server.moved(at - sent, at)

    # Receiving

    def put(self, fields):
        start, stop, size = content_range(fields.get("content-range", ""))
        if size != self.server.size or fields.get("content-length") != str(stop - start):
            raise Rejected(400, "Content-Range has to name the size of the file, and Content-Length the span's")
        if self.buffer is None:
            self.buffer = memoryview(bytearray(PIECE))
        digest, at = digest_in(fields.get("content-digest", "")), start
        sha = None if digest is None else hashlib.sha256()
        while at < stop:
            got = self.some(min(PIECE, stop - at))
            view = self.buffer[:got]
            if sha is not None:
                sha.update(view)
            try:
                self.server.unsealed.write(self.server.fd, view, at)
            except OSError as error:
                raise Rejected(507 if error.errno in REFUSE["disk"] else 500, error.strerror or str(error))
            at += got
        if sha is not None and sha.digest() != digest:
            self.answer(422)
            return
        self.server.unsealed.seal(start, stop)
        self.answer(204)

    def some(self, most):
        """Fill the buffer up to `most`; gives how much is there, which is that much unless it began with leftovers."""
        if self.ahead:
            got = min(len(self.ahead), most)
            self.buffer[:got] = self.ahead[:got]
            self.ahead = self.ahead[got:]
            return got
        done = 0
        while done < most:
            got = self.connection.recv_into(self.buffer[done:most])
            if not got:
                raise ValueError("the connection ended within a body")
            done += got
        return done


WORDS = {
    200: "OK", 204: "No Content", 206: "Partial Content", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found",
    405: "Method Not Allowed", 416: "Range Not Satisfiable", 422: "Unprocessable Content",
    500: "Internal Server Error", 507: "Insufficient Storage",
}  # fmt: skip


def span_of(text, size):
    """Read a Range field: start and stop, None where it is none of ours, so that the whole is given."""
    unit, _, rest = text.partition("=")
    first, dash, last = rest.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or "," in rest:
        return None
    try:
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(size, int(last) + 1) if last else size
    except ValueError:
        return None


def digest_in(text):
    """Read a Content-Digest field (RFC 9530): the SHA-256 in it, None where there is none."""
    name, _, value = text.strip().partition("=:")
    if name.lower() != "sha-256" or not value.endswith(":"):
        return None
    try:
        return base64.b64decode(value[:-1], validate=True)
    except ValueError:
        raise Rejected(400, "Content-Digest is no digest")


def content_range(text):
    """Read a Content-Range field of a request: start, stop, size. Rejected where it is none."""
    unit, _, rest = text.partition(" ")
    span, _, size = rest.partition("/")
    first, _, last = span.partition("-")
    try:
        start, stop, total = int(first), int(last) + 1, int(size)
    except ValueError:
        raise Rejected(400, "Content-Range is missing, or no range")
    if unit.lower() != "bytes" or not 0 <= start < stop <= total:
        raise Rejected(400, "Content-Range is no range of the file")
    return start, stop, total


def main(settings):
    """Serve as told, on a node: open, listen, say so on stdout, go on by ourselves, and leave nothing behind."""
    writable = settings["writable"]
    flags = os.O_RDONLY if writable is None else os.O_RDWR
    fd = os.open(settings["file"].encode("utf-8", "surrogateescape"), flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if settings.get("identity") is not None:
        alone(fd, settings["file"], settings["identity"])
    context = context_of(settings["certificate"], settings["key"]) if settings.get("certificate") else None
    listener = listening(settings["host"], settings["port"])
    sys.stdout.write("listening %d\n" % listener.getsockname()[1])
    sys.stdout.flush()
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    server = OneShot(fd, settings["path"], settings["token"], listener, writable, context, settings["idle"])
    server.ended = lambda: os._exit(0)  # at once, so that nobody has to wait for it, nor to end us
    try:
        server.serve()
    finally:
        os._exit(0)


def alone(fd, path, identity):
    """Be the only receiver of a part file, as long as we live, and only of the one that is meant.

    `identity` is what the agent knows it by: device, inode, and a mark that changes whenever somebody lays claim to
    it. A receiver that was meant to start before such a claim, and does so after it, is too late.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(error.errno, "somebody else receives this part file")
    with open(path[: -len(PART)].encode("utf-8", "surrogateescape") + JOURNAL, "rb") as journal:
        first = journal.read().partition(b"\n")[0]
    seen = os.fstat(fd)
    if "%d:%d:%s" % (seen.st_dev, seen.st_ino, hashlib.sha256(first).hexdigest()[:16]) != identity:
        raise OSError(errno.ESTALE, "the part file is another one than was meant")
