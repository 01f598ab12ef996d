"""Disk: the landing's files, kept open, reading them back, and bringing to the disk what was read back."""

import errno
import hashlib
import os
import queue
import threading

from rrmove.ssh.agent.common import PART, Refused, raw
from rrmove.ssh.agent.journal import identity

BLOCK = 256 * 1024  # hashing in blocks that stay in the cache is a quarter faster than by the chunk


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


def settle(settled):
    """Bring what was verified to the disk while more is on its way, so that the last sync has little left.

    sync_file_range() only starts it: unlike fsync() it takes no error away from the sync before the commit.
    """
    start = None
    while True:
        path, spans = settled.get()
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


def starter():
    import ctypes

    call = ctypes.CDLL(None).sync_file_range
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return lambda fd, at, length: call(fd, at, length, 2)  # SYNC_FILE_RANGE_WRITE


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
