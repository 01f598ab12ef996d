"""Fetcher: HTTP as it is spoken on the node, and here where we relay; what a URL is, and its bytes.

Standard library only, Python 3.6 or newer, as it is streamed to the node behind `leased.py`; only
`url` and `auth` among what it is given are secrets. It fills a part file and keeps a ledger beside
it: a line for each chunk with the SHA-256 of what came over the wire, so that what is on the disk
can be compared with it. Lines begin and end with a newline: one that was cut spoils no other.
"""

import base64
import email.utils
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request

PATIENCE = 20.0  # s without a byte after which a server has stalled
CONNECTING = 4.0  # s for the first look: a filtered port says nothing
STRIKES = 3  # failures in a row without a whole chunk gained; a stall, which takes its time, counts twice
BLOCK = 256 * 1024  # hashing in blocks that stay in the cache is a quarter faster than by the chunk
LARGEST = 128 << 20  # bytes of one request: what a cut connection puts in doubt is but a chunk of it
HOPS = 10  # redirects that are followed


class Trouble(Exception):
    """Why it cannot be fetched; `kind` is one word for programs, `text` a clause for people."""

    def __init__(self, kind, text):
        Exception.__init__(self, text)
        self.kind, self.text = kind, text

    @property
    def passing(self):
        return self.kind in ("cut", "busy", "unreachable", "stalled")


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, never from https to http, and takes no credentials along to another host."""

    max_redirections = HOPS
    max_repeats = HOPS
    linked = None

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        was, now = req.full_url.split("/")[:3], newurl.split("/")[:3]
        if now[0].lower() not in ("http:", "https:"):
            raise Trouble("redirect", "it redirects to %s" % now[0])
        if was[0].lower() == "https:" and now[0].lower() != "https:":
            raise Trouble("redirect", "it redirects from https to http, where anybody could alter it")
        new = urllib.request.HTTPRedirectHandler.redirect_request(
            self, req, fp, 307 if code == 308 else code, msg, headers, newurl
        )
        if new is not None:
            secret = req.unredirected_hdrs.get("Authorization")
            if secret and was == now:
                new.add_unredirected_header("Authorization", secret)
            linked = re.match(r'"?([0-9a-f]{64})"?$', headers.get("X-Linked-Etag", ""))  # Hugging Face's SHA-256
            self.linked = linked.group(1) if linked else self.linked
        return new

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


def ask(given, start=None, stop=None, timeout=None):
    """Send one GET and give the open answer. Raises Trouble."""
    headers = {"User-Agent": "rrmove", "Accept": "*/*", "Accept-Encoding": "identity"}
    if start is not None:
        headers["Range"] = "bytes=%d-%s" % (start, "" if stop is None else stop - 1)
        if given.get("if_range"):
            headers["If-Range"] = given["if_range"]
    request = urllib.request.Request(given["url"], headers=headers)
    if given.get("auth"):
        request.add_unredirected_header("Authorization", given["auth"])
    redirects = Redirects()
    try:
        answer = urllib.request.build_opener(redirects).open(
            request, timeout=timeout or given.get("patience", PATIENCE)
        )
    except Trouble:
        raise
    except Exception as error:
        raise explained(error)
    answer.linked = redirects.linked
    return answer


def explained(error):
    """Give the Trouble that an error of Python's libraries stands for."""
    if isinstance(error, urllib.error.HTTPError):
        return status_trouble(error)
    reason = getattr(error, "reason", error)
    if isinstance(reason, Trouble):
        return reason
    if isinstance(reason, ssl.SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in str(reason):
            why = getattr(reason, "verify_message", "") or "it cannot be verified"
            return Trouble("certificate", "the server's certificate is refused: %s" % why)
        return Trouble("cut", "TLS failed: %s" % (reason.reason or reason))
    if isinstance(reason, ssl.CertificateError):
        return Trouble("certificate", "the server's certificate is refused: %s" % reason)
    if isinstance(reason, socket.gaierror):
        return Trouble("dns", "its host's name cannot be resolved (%s)" % reason.strerror)
    if isinstance(reason, socket.timeout):
        return Trouble("stalled", "the server does not answer")
    if isinstance(reason, http.client.IncompleteRead):
        return Trouble("cut", "the server ended the answer too early")
    if isinstance(reason, (OSError, http.client.HTTPException)):
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return Trouble("unreachable", "the connection failed: %s" % text)
    return Trouble("odd", "%s: %s" % (type(error).__name__, str(reason)[:200]))


def status_trouble(error):
    text = "the server answers %d %s" % (error.code, error.reason)
    if 300 <= error.code < 400:
        return Trouble("redirect", "it redirects too often, or to nowhere (%d)" % error.code)
    if error.code == 416:
        return Trouble("range", text)
    if error.code in (408, 425, 429) or error.code >= 500:
        return Trouble("busy", text)
    if error.code in (401, 403, 407):
        return Trouble("denied", text)
    return Trouble("gone" if error.code in (404, 410) else "status", text)


def said(answer):
    """Read from an answer's headers which version of the file it is about, and how large that is."""
    headers = answer.headers
    size, start = headers.get("Content-Length"), 0
    ranged = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", headers.get("Content-Range", ""))
    if answer.status == 206:
        if not ranged:
            raise Trouble("odd", "the server gives a part and does not say which")
        start, size = int(ranged.group(1)), ranged.group(2)
    etag = headers.get("ETag", "")
    digest = None
    for name, form in (("Repr-Digest", r"sha-256=:([^:]+):"), ("Digest", r"(?i)sha-256=([A-Za-z0-9+/=]+)")):
        found = re.search(form, headers.get(name, ""))
        if found:
            digest = base64.b64decode(found.group(1)).hex()
    etag, modified = "" if etag.startswith("W/") else etag, headers.get("Last-Modified", "")
    return {
        "size": int(size) if size and size.isdigit() else None,
        "start": start,
        "etag": etag,
        "modified": modified,
        "named": bool(etag) or firm(modified, headers.get("Date", "")),
        "digest": digest or getattr(answer, "linked", None),
    }


def firm(modified, date):
    """Whether a date names a version: not where the file may have been changed within the same second."""
    try:
        was, now = (time.mktime(email.utils.parsedate(words)) for words in (modified, date))
    except (TypeError, ValueError, OverflowError):
        return False
    return now - was >= 2


def look(given):
    """Find out what a URL is without fetching it. Raises Trouble."""
    try:
        with ask(given, 0, 1, timeout=CONNECTING) as answer:
            return dict(said(answer), ranges=answer.status == 206)
    except Trouble as trouble:
        if trouble.kind != "range":  # an empty file has no first byte
            raise
    with ask(given, timeout=CONNECTING) as answer:
        return dict(said(answer), ranges=False)


def tell():
    """Look at a URL for who started this program, in one line of JSON."""
    given = json.loads(sys.stdin.buffer.read().decode("ascii"))
    try:
        line = look(given)
    except Trouble as trouble:
        line = {"trouble": [trouble.kind, trouble.text]}
    print(json.dumps(line))


def same(given, found):
    """Raise Trouble where an answer is about another version than the one that was looked at."""
    for what in ("size", "etag", "modified"):
        if found[what] != given[what] and not (what == "size" and None in (found[what], given[what])):
            raise Trouble("changed", "the file was changed on the server while it was fetched")


def opened(given, start, stop):
    """Ask for the bytes from `start` to `stop`, or for all of them, and give the answer. Raises Trouble."""
    whole = start is None
    answer = ask(given) if whole else ask(given, start, stop)
    try:
        found = said(answer)
        same(given, found)
        if not whole and (answer.status != 206 or found["start"] != start):
            raise Trouble("norange", "the server no longer gives parts of the file")
        if answer.length is None and not answer.chunked and not given.get("sha256"):
            raise Trouble("endless", "the server does not say where the file ends, so that a cut could not be noticed")
    except BaseException:
        answer.close()
        raise
    return answer


def blocks(answer, stop):
    """Give an answer's bytes, from wherever it starts up to `stop` (None: to its clean end). Raises Trouble."""
    buffer, left = memoryview(bytearray(BLOCK)), stop
    while left is None or left:
        try:
            got = answer.readinto(buffer if left is None else buffer[: min(left, BLOCK)])
        except Exception as error:
            raise explained(error)
        if not got:
            if left:
                raise Trouble("cut", "the connection ended %d bytes too early" % left)
            return
        yield buffer[:got]
        left = None if left is None else left - got


def cut(block, first, others):
    """Cut a block where chunks end."""
    while block:
        yield block[:first]
        block, first = block[first:], others


class Fetch:
    """Fetch what is missing of a file into its part, with a few connections; the duty of a leased program."""

    def __init__(self, given, folder=None):
        self.given, self.lock = given, threading.Lock()
        self.moved, self.most, self.trouble, self.over = 0, 0, None, False
        self.tokens, self.then = 0.0, time.monotonic()
        self.queue = []
        self.sha256 = self.ino = None

    def begin(self):
        threading.Thread(target=self.run, daemon=True).start()

    def answer(self, question):
        if question:
            self.given["rate"] = float(question)  # what others leave of the limit now
        fields = {"moved": self.moved, "over": self.over, "sha256": self.sha256, "ino": self.ino}
        if self.trouble is not None:
            fields["trouble"] = [self.trouble.kind, self.trouble.text]
        return json.dumps(fields).encode("ascii")

    def end(self):
        self.over = True

    def run(self):
        try:
            if self.given.get("digest"):
                self.digest(self.given["digest"].encode("utf-8", "surrogateescape"))
            else:
                self.fetch()
        except Trouble as trouble:
            self.trouble = trouble
        except OSError as error:
            self.trouble = Trouble("disk", "%s: %s" % (error.errno, error.strerror))
        except Exception as error:
            self.trouble = Trouble("odd", "%s: %s" % (type(error).__name__, error))
        self.over = True

    def digest(self, path):
        sha, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
        with open(path, "rb", 0) as file:
            seen = os.fstat(file.fileno())
            while True:
                got = file.readinto(buffer)
                if not got:
                    break
                sha.update(buffer[:got])
                self.moved += got
        self.ino, self.sha256 = "%d:%d:" % (seen.st_dev, seen.st_ino), sha.hexdigest()

    def fetch(self):
        given = self.given
        paths = [given[what].encode("utf-8", "surrogateescape") for what in ("part", "ledger")]
        self.part = os.open(paths[0], os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self.ledger = os.open(paths[1], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        if not given["resumable"]:
            self.persist(self.whole)
            return
        streams = max(1, given["streams"])
        total = sum(stop - start for start, stop in given["missing"])
        share = total // (streams * 4) // given["grain"] * given["grain"]
        share = min(LARGEST, max(given["grain"] * 4, share))
        for start, stop in given["missing"]:
            self.queue += [(at, min(stop, at + share)) for at in range(start, stop, share)]
        self.queue.reverse()
        workers = [threading.Thread(target=self.work, daemon=True) for _ in range(min(streams, len(self.queue)))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def work(self):
        try:
            while self.trouble is None and not self.over:
                with self.lock:
                    if not self.queue:
                        return
                    start, stop = self.queue.pop()
                self.persist(self.piece, [start], stop)
        except Trouble as trouble:
            self.trouble = self.trouble or trouble
        except OSError as error:
            self.trouble = self.trouble or Trouble("disk", "%s: %s" % (error.errno, error.strerror))
        except Exception as error:
            self.trouble = self.trouble or Trouble("odd", "%s: %s" % (type(error).__name__, error))

    def piece(self, at, stop):
        if at[0] < stop:
            self.stream(at, stop)

    def persist(self, duty, *arguments):
        """Do it again while it fails for reasons that pass, and a few times more where nothing is gained."""
        strikes, most = 0, self.most
        while True:
            try:
                duty(*arguments)
                return
            except Trouble as trouble:
                if self.most > most:
                    strikes, most = 0, self.most
                strikes += 2 if trouble.kind == "stalled" else 1
                if not trouble.passing or strikes >= STRIKES or self.trouble is not None:
                    raise
            time.sleep(min(4.0, 0.25 * 2**strikes))

    def whole(self):
        """Fetch all of it from the start, as nothing can be continued here."""
        self.moved = 0
        os.write(self.ledger, b"\nnew\n")
        at = [0]
        self.stream(at, None)
        os.write(self.ledger, b"\nend %d\n" % at[0])

    def stream(self, at, stop):
        given = self.given
        grain, begin = given["grain"], None if stop is None else at[0]
        end = stop if stop is not None else given["size"]
        with opened(given, begin, stop) as answer:
            sha, filled = hashlib.sha256(), 0
            for block in blocks(answer, None if end is None else end - at[0]):
                self.throttle(len(block))
                for view in cut(block, grain - filled, grain):
                    self.write(view, at[0] + filled)
                    sha.update(view)
                    filled += len(view)
                    if filled == grain:
                        self.chunk(at, sha, filled)
                        sha, filled = hashlib.sha256(), 0
                if self.over:
                    return
            if filled:
                self.chunk(at, sha, filled)
            if stop is None and answer.chunked and answer.read(1):
                raise Trouble("changed", "the file is longer than the server said")

    def write(self, view, at):
        while view:
            wrote = os.pwrite(self.part, view, at)
            view, at = view[wrote:], at + wrote

    def chunk(self, at, sha, length):
        os.write(self.ledger, b"\n%d %s\n" % (at[0] // self.given["grain"], sha.hexdigest().encode("ascii")))
        at[0] += length
        with self.lock:
            self.moved += length
            self.most = max(self.most, self.moved)  # what was begun anew has to get further than before

    def throttle(self, count):
        rate = self.given.get("rate")
        if not rate:
            return
        with self.lock:
            now = time.monotonic()
            self.tokens = min(rate / 10, self.tokens + (now - self.then) * rate) - count
            self.then, wait = now, -self.tokens / rate
        if wait > 0:
            time.sleep(wait)
