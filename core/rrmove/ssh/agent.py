"""The agent: what runs at the far end of a lane, streamed there over the connection's own stdin.

One file, standard library only, Python 3.6 or newer; nothing is installed and nothing stays. It
imports nothing of rrmove, and rrmove imports nothing of it but its text.

The protocol. Both ways a frame is a header (magic, length of the fields, length of the body; big
endian), the fields as JSON, the body as raw bytes. A request has `op` and `id`, its answer the
same `id`, or `error` with `errno`, a symbolic name, and `text`. The environment of every agent has
RRMOVE_AGENT=1, so that agents can tell one another from foreign writers. Both sides begin with all 256
byte values: where they do not get through, no frame would. Requests may follow before the agent has
said anything. `put` is done in the order of arrival by the reading thread; what reads or
changes the disk otherwise is done in order by one other thread, each after the puts before it;
the rest is answered when it is ready. While anything is under way a beat (id 0) is sent every
second, so that silence means a dead connection.

    hello                                       who is there; the body comes back as it came
    probe    asks                               run shell snippets, each for at most 3 seconds
    locate   destination name key               where the file would land, and what is there
    open     part journal note size need        make the part file ready, mkdir -p, free space
    put      part at            + body          write at an offset; repeats do no harm
    hash     path spans                         SHA-256 of spans read back from the file
    get      path at length                     bytes of a file
    trim     part size                          cut the part file
    admit    part journal ino servers           let the node's data server write (1), or just change the identity (0)
    evict    part                               end foreign processes that have the part open, admit no server
    commit   part journal target size ino mode mtime_ns check    verify, fsync, rename
    quarantine part journal                     put a hopeless part aside
    sweep    directories older_than depth       remove old parts that nobody has open
    reach    host port timeout                  can the node connect there
    run      argv timeout       + stdin         run a program
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import queue
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

MAGIC = b"RRM1"
HEADER = struct.Struct(">4sII")
READY = b"\0RRMOVE-READY\n"
EVERY_BYTE = bytes(bytearray(range(256)))
PROOF = b"\nRRMOVE-BYTES " + EVERY_BYTE + READY  # before anything is said, all bytes have to get through
NOT_CLEAN = b"\nRRMOVE-NOT-CLEAN\n"
BLOCK = 256 * 1024  # hashing in blocks that stay in the cache is a quarter faster than by the chunk
IDLE = 900.0  # an agent whose connection died without a word goes after this many seconds
PART, JOURNAL, BAD = ".rrmove-part", ".rrmove-journal", ".rrmove-bad"
ADMITTED = b"\nadmitted\n"  # what follows the journal's first line while data servers may write into the part
LOCKING = 10.0  # s that a data server may take to write what it is writing: 4 MiB at most


class Refused(Exception):
    """An operation cannot be done; the name is symbolic like an errno."""

    def __init__(self, name, text, **more):
        Exception.__init__(self, text)
        self.fields = dict(more, errno=name, text=text)


def trouble(error):
    name = errno.errorcode.get(error.errno or 0, "EIO")
    return {"errno": name, "text": error.strerror or str(error)}


def raw(path):
    """Give a path as bytes: names need not be text, and the node's locale must not matter."""
    return path.encode("utf-8", "surrogateescape")


def text(path):
    return path.decode("utf-8", "surrogateescape")


def home():
    return raw(os.path.expanduser("~"))


class Disk:
    """Files of the landing, each kept open while its path still leads to it."""

    def __init__(self):
        self.open_files = {}
        self.lock = threading.Lock()
        self.zeros = {}

    def part(self, path):
        """Give a descriptor of what the path names now, to be closed by who asks, or None.

        It is one of their own: the other thread may find the path replaced meanwhile and close ours.
        """
        with self.lock:
            fd = self.known(path)
            return None if fd is None else os.dup(fd)

    def known(self, path):
        known = self.open_files.get(path)
        try:
            seen = os.stat(raw(path))
        except FileNotFoundError:
            seen = None
        if known is not None:
            if seen is not None and (seen.st_dev, seen.st_ino) == known[1]:
                return known[0]
            os.close(known[0])
            del self.open_files[path]
        if seen is None:
            return None
        fd = os.open(raw(path), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        now = os.fstat(fd)
        self.open_files[path] = (fd, (now.st_dev, now.st_ino))
        return fd

    def forget(self, path):
        """Let go of a path's file: a target that we keep open for writing could not be executed."""
        with self.lock:
            fd, _ = self.open_files.pop(path, (None, None))
            if fd is not None:
                os.close(fd)

    def zero_digest(self, length):
        if length not in self.zeros:
            sha, block, left = hashlib.sha256(), bytes(BLOCK), length
            while left:
                step = min(left, BLOCK)
                sha.update(block[:step])
                left -= step
            self.zeros[length] = sha.hexdigest()
        return self.zeros[length]

    def digest(self, fd, at, length, size, buffer):
        """SHA-256 of a span as it stands in the file, None where the file is too short."""
        if at + length > size:
            return None
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            data = at + length if error.errno == errno.ENXIO else at
        if length and data >= at + length:
            return self.zero_digest(length)
        sha, done = hashlib.sha256(), 0
        while done < length:
            view = buffer[: min(BLOCK, length - done)]
            got = os.preadv(fd, [view], at + done) if hasattr(os, "preadv") else None
            if got is None:
                data = os.pread(fd, len(view), at + done)
                got = len(data)
                view = memoryview(data)
            if not got:
                return None
            sha.update(view[:got])
            done += got
        return sha.hexdigest()


class Agent:
    def __init__(self, source, sink):
        self.source, self.sink = source, sink
        self.disk = Disk()
        self.sending = threading.Lock()
        self.busy, self.moved = 0, False
        self.count = threading.Lock()
        self.work = queue.Queue(256)
        self.buffer = memoryview(bytearray(1 << 20))
        self.hashing = memoryview(bytearray(BLOCK))
        self.settled = queue.Queue(16)

    # The wire

    def read(self, view):
        done = 0
        while done < len(view):
            got = os.readv(self.source, [view[done:]])
            if not got:
                raise EOFError
            done += got

    def answer(self, number, fields, body=b""):
        fields["id"] = number
        head = json.dumps(fields).encode("ascii")
        data = HEADER.pack(MAGIC, len(head), len(body)) + head + body
        with self.sending:
            view = memoryview(data)
            while view:
                view = view[os.write(self.sink, view) :]

    def beat(self):
        while True:
            time.sleep(1.0)
            if self.busy or self.moved:
                self.moved = False
                self.answer(0, {"beat": True})

    def serve(self):
        for duty in (self.beat, self.disk_work, self.settle):
            self.thread(duty)
        head = memoryview(bytearray(HEADER.size))
        while True:
            if not select.select([self.source], [], [], IDLE)[0]:
                return
            self.read(head)
            magic, fields_length, body_length = HEADER.unpack(head)
            if magic != MAGIC:
                raise Refused("EPROTO", "the stream is mangled")
            encoded = memoryview(bytearray(fields_length))
            self.read(encoded)
            fields = json.loads(bytes(encoded).decode("ascii"))
            number, op = fields.pop("id"), fields.pop("op")
            if op == "put":
                self.put(number, body_length, **fields)
                continue
            body = memoryview(bytearray(body_length))
            self.read(body)
            if op in ON_DISK:
                self.occupied(1)
                self.work.put((number, op, fields))
            elif op in ASIDE:
                self.occupied(1)
                self.thread(self.perform, number, ASIDE[op], dict(fields, body=bytes(body)))
            else:
                self.occupied(1)
                self.perform(number, unknown, {"op": op})

    def thread(self, duty, *arguments):
        def run():
            try:
                duty(*arguments)
            except OSError:  # our side of the connection is gone: so are we
                os._exit(1)

        threading.Thread(target=run, daemon=True).start()

    def occupied(self, change):
        with self.count:
            self.busy += change

    def disk_work(self):
        while True:
            number, op, fields = self.work.get()
            self.perform(number, ON_DISK[op], dict(fields, agent=self))

    def settle(self):
        """Bring what was verified to the disk while more is on its way, so that the last sync has little left.

        sync_file_range() only starts it: unlike fsync() it takes no error away from the sync before the commit.
        """
        start = None
        while True:
            path, spans = self.settled.get()
            try:
                start = start or starter()
                fd = os.open(raw(path), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except (OSError, ImportError, AttributeError):
                continue  # the sync before the commit does all of it
            try:
                for at, length in spans:
                    start(fd, at, length)
            finally:
                os.close(fd)

    def perform(self, number, duty, fields):
        body = b""
        try:
            result = duty(**fields)
            if isinstance(result, tuple):
                result, body = result
        except Refused as error:
            result = {"error": error.fields}
        except OSError as error:
            result = {"error": trouble(error)}
        except Exception as error:
            result = {"error": {"errno": "EPROTO", "text": "%s: %s" % (type(error).__name__, error)}}
        finally:
            self.occupied(-1)
        self.answer(number, result, body)

    def put(self, number, length, part, at):
        """Write as the bytes come, so that what arrived counts even if the frame never ends."""
        problem = None
        try:
            fd = self.disk.part(part)
            if fd is None:
                problem = {"errno": "ENOENT", "text": "the part file is gone"}
        except OSError as error:
            fd, problem = None, trouble(error)
        try:
            problem = self.write_body(fd, length, at, problem)
        finally:
            if fd is not None:
                os.close(fd)
        self.answer(number, {"error": problem} if problem else {})

    def write_body(self, fd, length, at, problem):
        done = 0
        while done < length:
            got = os.readv(self.source, [self.buffer[: min(length - done, len(self.buffer))]])
            if not got:
                raise EOFError
            self.moved = True
            view = self.buffer[:got]
            try:
                while view and problem is None:
                    wrote = os.pwrite(fd, view, at + done + got - len(view))
                    view = view[wrote:]
            except OSError as error:
                problem = trouble(error)
            done += got
        return problem


def starter():
    import ctypes

    call = ctypes.CDLL(None).sync_file_range
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return lambda fd, at, length: call(fd, at, length, 2)  # SYNC_FILE_RANGE_WRITE


def unknown(op):
    raise Refused("ENOSYS", "this agent does not know %r" % op)


# What is there


def hello(body):
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "pid": os.getpid(),
        "clean": body == bytes(range(256)),
        "client": os.environ.get("SSH_CONNECTION", ""),
    }, body


def shell(ask):
    process = subprocess.Popen(
        ["/bin/sh", "-c", ask],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = threading.Timer(3.0, kill_group, (process.pid,))
    end.start()
    try:
        out = process.stdout.read(64 * 1024)
        process.stdout.close()
        process.wait()
    finally:
        end.cancel()
    return out.decode("utf-8", "surrogateescape")


def kill_group(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass  # it has ended by itself


def probe(asks, body):
    outputs = {}

    def one(name, ask):
        outputs[name] = shell(ask)

    threads = [threading.Thread(target=one, args=pair, daemon=True) for pair in asks.items()]
    for thread in threads:
        thread.start()
    end = time.time() + 3.5
    for thread in threads:
        thread.join(max(0.0, end - time.time()))
    return {"outputs": dict(outputs)}


def reach(host, port, timeout, body):
    try:
        socket.create_connection((host, port), timeout).close()
    except ConnectionRefusedError:
        return {"state": "refused"}
    except socket.timeout:
        return {"state": "filtered"}
    except OSError:
        return {"state": "unreachable"}
    return {"state": "open"}


def run(argv, timeout, body):
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(body, timeout)
    except subprocess.TimeoutExpired:
        kill_group(process.pid)
        try:
            process.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            pass  # something that left the group keeps the pipes: it is not waited for
        raise Refused("ETIMEDOUT", "%s did not end within %g s" % (argv[0], timeout))
    return {"status": process.returncode, "errors": text(err[-65536:])}, out[: 1 << 20]


# The landing


def nearest(path):
    """The deepest directory on the way to a path that exists."""
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def locate(agent, destination, name, key, size=None, need=0, note=None):
    path = os.path.expanduser(raw(destination)) if destination.startswith("~") else raw(destination)
    path = os.path.join(home(), path)
    if destination == "" or path.endswith(b"/") or os.path.isdir(path):
        path = os.path.join(path, raw(name))
    target = os.path.realpath(path)
    directory, base = os.path.split(target)
    # A file name may have 255 bytes; the part's must fit beside the target.
    stem = os.path.join(directory, b"." + base[:200] + b"." + raw(key))
    there = nearest(directory)
    space = os.statvfs(there)
    found = {
        "target": text(target),
        "part": text(stem) + PART,
        "journal": text(stem) + JOURNAL,
        "free": space.f_bavail * space.f_frsize,
        "writable": os.access(there, os.W_OK | os.X_OK),
        "directory": text(directory),
        "nearest": text(there),
        "size": None,
        "kind": None,
        "part_size": None,
        "held": 0,
    }
    try:
        seen = os.stat(target)
        found["size"] = seen.st_size
        found["mode"] = stat.S_IMODE(seen.st_mode)
        found["mtime_ns"] = seen.st_mtime_ns
        found["kind"] = "file" if stat.S_ISREG(seen.st_mode) else "directory" if stat.S_ISDIR(seen.st_mode) else "other"
    except FileNotFoundError:
        pass  # nothing is there yet
    try:
        seen = os.stat(raw(found["part"]))
        found["part_size"], found["held"] = seen.st_size, seen.st_blocks * 512
    except FileNotFoundError:
        pass  # no part yet
    if size is not None and found["kind"] in (None, "file") and found["size"] != size:
        need = max(0, need - found["held"])
        found["opened"] = open_part(agent, found["part"], found["journal"], note, size, need)
    return found


def identity(seen, path):
    """Tell one part file from the next of the same name, even where that got the same inode again.

    The journal has a random number in its first line, and is written anew with every new part file, and
    whenever data servers are let in: so a commit can tell that nobody was since the verification.
    """
    mark = ""
    if path.endswith(PART):
        first, _ = journal_of(path)
        mark = "-" if first is None else hashlib.sha256(first).hexdigest()[:16]
    return "%d:%d:%s" % (seen.st_dev, seen.st_ino, mark)


def journal_of(part):
    """The first line of a part's journal, None where there is none, and whether data servers may write."""
    try:
        with open(raw(part[: -len(PART)] + JOURNAL), "rb") as journal:
            first, line, _ = journal.read().partition(b"\n")
    except FileNotFoundError:
        return None, False
    return first, bool(line)


def write_journal(journal, note, end=b""):
    # A name of our own for the draft: another sender of the same content may write one too.
    draft = raw(journal) + b"." + os.urandom(4).hex().encode("ascii") + b"~"
    with open(draft, "wb") as out:
        out.write(json.dumps(dict(note, nonce=os.urandom(8).hex())).encode("ascii") + end)
    os.rename(draft, raw(journal))


@contextlib.contextmanager
def alone(fd):
    """Hold a part's lock, which data servers share while they look whether they may write, and write."""
    end = time.time() + LOCKING
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.time() > end:
                raise Refused("EBUSY", "a data server keeps writing to the part file")
            time.sleep(0.005)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            break  # no locks on this file system: no data server writes without one
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def admit(agent, part, journal, ino, servers=1):
    """Let data servers write, until `shut_out`; or (0) none, and just have all who verified the part do so anew.

    It changes the part's identity, which is in the answer.
    """
    fd = agent.disk.part(part)
    if fd is None:
        raise Refused("ENOENT", "the part file is gone")
    try:
        with alone(fd):
            seen = os.fstat(fd)
            if identity(seen, part) != ino:
                raise Refused("ESTALE", "the part file is another one than was opened")
            first, admitted = journal_of(part)
            if not (admitted and servers):
                try:
                    note = json.loads((first or b"{}").decode("ascii"))
                except ValueError:
                    note = {}  # torn by a crash: it is for people, and the number in it for us
                write_journal(journal, note, ADMITTED if servers else b"")
            return {"ino": identity(seen, part)}
    finally:
        os.close(fd)


def shut_out(agent, part):
    """Let no data server write any more, whatever is still on its way to one; the identity stays."""
    fd = agent.disk.part(part)
    if fd is None:
        return
    try:
        with alone(fd):
            first, admitted = journal_of(part)
            if admitted:
                os.truncate(raw(part[: -len(PART)] + JOURNAL), len(first))
    finally:
        os.close(fd)


def open_part(agent, part, journal, note, size, need):
    os.makedirs(os.path.dirname(raw(part)), exist_ok=True)
    fd = os.open(raw(part), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        seen = os.fstat(fd)
        space = os.statvfs(raw(part))
        free = space.f_bavail * space.f_frsize
        if need > free:
            if not seen.st_size:
                os.unlink(raw(part))
            raise Refused("ENOSPC", "No space left on device", need=need, free=free)
        fresh = not seen.st_size
        if fresh or not os.path.exists(raw(journal)):
            write_journal(journal, note)
        if seen.st_size != size:
            os.ftruncate(fd, size)
        return {"ino": identity(seen, part), "held": seen.st_blocks * 512, "fresh": fresh}
    finally:
        os.close(fd)


def digests(agent, path, spans):
    if not path.endswith(PART):
        try:
            fd = os.open(raw(path), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            fd = None
    else:
        fd = agent.disk.part(path)
    if fd is None:
        return {"ino": None, "size": None, "digests": [None] * len(spans)}
    try:
        seen = os.fstat(fd)
        found = together(agent, fd, spans, seen.st_size)
    finally:
        os.close(fd)
    return {"ino": identity(seen, path), "size": seen.st_size, "held": seen.st_blocks * 512, "digests": found}


def hashed(agent, path, spans):
    found = digests(agent, path, spans)
    if path.endswith(PART) and spans:
        try:
            agent.settled.put_nowait((path, spans))
        except queue.Full:
            pass  # the disk is slower than the wire: it is at it anyway
    return found


def together(agent, fd, spans, size):
    """Hash many spans on all processors: somebody waits for it, with nothing else to do."""
    count = min(len(spans) // 4, os.cpu_count() or 1, 4)
    if count < 2:
        return [agent.disk.digest(fd, at, length, size, agent.hashing) for at, length in spans]
    found, wrong = [None] * len(spans), []

    def work(first):
        try:
            buffer = memoryview(bytearray(BLOCK))
            for index in range(first, len(spans), count):
                found[index] = agent.disk.digest(fd, spans[index][0], spans[index][1], size, buffer)
        except OSError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]
    return found


def get(agent, path, at, length):
    fd = os.open(raw(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return {}, os.pread(fd, min(length, 8 << 20), at)
    finally:
        os.close(fd)


def trim(agent, part, size):
    fd = agent.disk.part(part)
    if fd is None:
        raise Refused("ENOENT", "the part file is gone")
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)
    return {}


def files_of(pid):
    """Device and inode of all that a process has open: where its first thread has ended, the others may write on."""
    found = set()
    for task in [pid] + [task for task in os.listdir("/proc/%s/task" % pid) if task != pid]:
        place = "/proc/%s/task/%s/fd" % (pid, task)
        for fd in os.listdir(place):
            try:
                held = os.stat("%s/%s" % (place, fd))
            except OSError:
                continue  # it was closed between the look and this one
            found.add((held.st_dev, held.st_ino))
        if found:
            break  # threads share what they have open
    return found


def holders(path):
    """Pids of other processes that have a file open, agents not counted."""
    seen = os.stat(path)
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        if int(pid) == os.getpid():
            continue
        try:
            with open("/proc/%s/environ" % pid, "rb") as environ:
                ours = b"RRMOVE_AGENT=1" in environ.read().split(b"\0")
            if (seen.st_dev, seen.st_ino) in files_of(pid):
                yield int(pid), ours
        except OSError:
            continue  # it has ended, or is not ours to look at


def evict(agent, part):
    ended = []
    for name in (0, signal.SIGTERM, signal.SIGKILL):  # 0: whoever is just ending may do so
        for turn in range(20 if name else 1):
            try:
                foreign = [pid for pid, ours in holders(raw(part)) if not ours]
            except FileNotFoundError:
                foreign = []
            if not foreign:
                shut_out(agent, part)
                return {"ended": ended}
            for pid in foreign:
                try:
                    os.kill(pid, name)
                    ended += [pid] if name else []
                except ProcessLookupError:
                    pass  # gone between the look and the signal
            time.sleep(0.05 if turn else 0.01)
    raise Refused("EBUSY", "another process keeps writing to the part file")


def commit(agent, part, journal, target, size, ino, mode, mtime_ns, check):
    fd = agent.disk.part(part)
    if fd is None:
        raise Refused("ENOENT", "the part file is gone")
    try:
        with alone(fd):
            seen = os.fstat(fd)
            if identity(seen, part) != ino or seen.st_size != size:
                raise Refused("ESTALE", "the part file is another one than was verified")
            if journal_of(part)[1]:
                raise Refused("ESTALE", "a data server may still write to the part file")
            finish(agent, fd, part, target, size, mode, mtime_ns, check)
    finally:
        os.close(fd)
    agent.disk.forget(part)
    directory = os.open(os.path.dirname(raw(target)), os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError:
        pass  # some network file systems cannot sync a directory: the rename itself is done
    finally:
        os.close(directory)
    remove(raw(journal))
    return {"target": target}


def finish(agent, fd, part, target, size, mode, mtime_ns, check):
    wrong = [at for at, length, expected in check if agent.disk.digest(fd, at, length, size, agent.hashing) != expected]
    if wrong:
        raise Refused("EBADMSG", "the part file does not match", wrong=wrong)
    if os.path.isdir(raw(target)):
        raise Refused("EISDIR", "Is a directory")
    os.fchmod(fd, mode & 0o777)
    os.utime(fd, ns=(mtime_ns, mtime_ns))
    os.fsync(fd)
    os.rename(raw(part), raw(target))


def remove(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def quarantine(agent, part, journal):
    bad = part[: -len(PART)] + BAD
    os.rename(raw(part), raw(bad))
    remove(raw(journal))
    return {"path": bad}


def leftovers(names):
    """The names that are ours: parts first, since a journal stays as long as its part."""
    ours = [name for name in names if name.startswith(b".")]
    parts = [name for name in ours if name.endswith((raw(PART), raw(BAD)))]
    drafts = [name for name in ours if raw(JOURNAL) in name and name.endswith(b"~")]
    return parts + drafts + [name for name in ours if name.endswith(raw(JOURNAL))]


def sweep(agent, directories, older_than, depth):
    removed, kept, now = [], [], time.time()
    for start in directories:
        top = os.path.join(home(), os.path.expanduser(raw(start)))
        for folder, below, names in os.walk(top):
            if folder[len(top) :].count(b"/") >= depth:
                del below[:]
            for name in leftovers(names):
                path = os.path.join(folder, name)
                try:
                    if now - os.stat(path).st_mtime < older_than:
                        continue
                    if name.endswith(raw(JOURNAL)) and os.path.exists(path[: -len(JOURNAL)] + raw(PART)):
                        continue
                    if next(holders(path), None):
                        kept.append(text(path))
                    elif remove(path):
                        removed.append(text(path))
                except OSError:
                    kept.append(text(path))
    return {"removed": removed, "kept": kept}


ON_DISK = {
    "locate": locate,
    "open": open_part,
    "hash": hashed,
    "get": get,
    "trim": trim,
    "admit": admit,
    "evict": evict,
    "commit": commit,
    "quarantine": quarantine,
    "sweep": sweep,
}
ASIDE = {"hello": hello, "probe": probe, "reach": reach, "run": run}


def main():
    # Ours alone: what we run may write to a part file, and has to be seen as the stranger that it is.
    os.environ.pop("RRMOVE_AGENT", None)
    sink = os.dup(1)
    os.dup2(2, 1)  # whatever prints must not get between the frames
    for fd in (0, sink):
        try:
            __import__("fcntl").fcntl(fd, 1031, 1 << 20)  # F_SETPIPE_SZ: a wider pipe, fewer switches
        except (OSError, ImportError):
            pass  # not a pipe, or not Linux
    agent = Agent(0, sink)
    try:
        proof = memoryview(bytearray(len(EVERY_BYTE)))
        agent.read(proof)
        clean = proof == EVERY_BYTE
        os.write(sink, PROOF if clean else NOT_CLEAN)
        if clean:
            agent.serve()
    except (EOFError, OSError):
        pass  # the connection has ended
    except Exception as error:  # nothing that follows could be understood; the connection ends with a word
        os.write(2, raw("the agent ends: %s: %s\n" % (type(error).__name__, error)))
    os._exit(0)


if __name__ == "__main__":
    main()
