"""Give: runs on the node; the one file as far as it is there, to siblings that have the token, while our lease holds.

Standard library only, Python 3.6 or newer. It is streamed behind `leased.py` and the one-shot server's text, as the
duty of a leased program. The file may still be growing: a part file is one hole at first, so what is no hole has
been written. That is a hint and no proof (who pulls compares digests): what is not there yet is answered with
503, and nobody waits for it here.

    GET PATH with X-Have        JSON: the spans that are there, and whether the file is whole
    GET PATH with Range         as the one-shot server has it; 503 where a byte of it is still a hole

A question of ours is JSON, too: `whole` says that the file is; the answer has the port that it listens on, and the
addresses under which the node knows itself. Without a file it only listens, so that others can try to reach it.
"""


# The one-shot server's text, and leased.py's, stand before this one: their imports and classes are there.
def visitor():
    """The one-shot server's kind of visit, for a file that may still be growing."""

    class Given(Visit):
        def get(self, method, fields):
            server = self.server
            spans = [(0, server.size)] if server.whole else written(server.fd, server.size)
            if "x-have" in fields:
                body = json.dumps({"whole": server.whole, "spans": spans}).encode("ascii")
                self.answer(200, [("Content-Type", "application/json")], body)
                return
            wanted = span_of(fields.get("range", ""), server.size)
            start, stop = wanted or (0, server.size)
            if not any(first <= start and stop <= last for first, last in spans):
                self.answer(503, [("Retry-After", "1")])
                return
            Visit.get(self, method, fields)

    return Given


def written(fd, size):
    """The spans of a file that are no holes; all of it where the file system cannot tell."""
    found, at = [], 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return found
            return [(0, size)]
        found.append((start, at))
    return found


class Give:
    """A giver; `given` has the file and its size, the ports to try, path, token, certificate and key."""

    def __init__(self, given, folder):
        self.given, self.server, self.trouble, self.port = given, None, None, None

    def begin(self):
        given = self.given
        try:
            listener = self.listener()
            self.port = listener.getsockname()[1]
            fd = -1
            if given["file"] is not None:
                path = given["file"].encode("utf-8", "surrogateescape")
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            else:
                fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            context = context_of(given["certificate"], given["key"])
            server = OneShot(fd, given["path"], given["token"], listener, context=context)
            server.visitor, server.whole, server.size = visitor(), False, given["size"]
            self.server = server
            threading.Thread(target=server.serve, daemon=True).start()
        except OSError as error:
            self.trouble = error.strerror or str(error)

    def listener(self):
        """The first port of those that are free; the last, 0, always is."""
        last = None
        for port in self.given["ports"]:
            try:
                return listening("", port)
            except OSError as error:
                last = error
        raise last

    def answer(self, question):
        if question and self.server is not None:
            self.server.whole = bool(json.loads(question.decode("ascii")).get("whole"))
        return json.dumps({"port": self.port, "hosts": known_as(), "trouble": self.trouble}).encode("ascii")

    def end(self):
        if self.server is not None:
            self.server.stop()


def known_as():
    """The node's addresses as it knows them: where our login came in, and where it goes out. Nothing is sent."""
    hosts = os.environ.get("SSH_CONNECTION", "").split(" ")[2:3]
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            out = socket.socket(family, socket.SOCK_DGRAM)
        except OSError:
            continue
        try:
            out.connect((far, 9))
            hosts.append(out.getsockname()[0])
        except OSError:
            pass  # no way out in this family
        finally:
            out.close()
    return hosts
