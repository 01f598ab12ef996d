"""Landing: a part file from its place on the disk to its own name, or aside."""

import os
import stat

from rrmove.ssh.agent.common import BAD, JOURNAL, PART, Refused, home, raw, remove, text
from rrmove.ssh.agent.journal import identity, journal_of, locked, write_journal


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


def commit(agent, part, journal, target, size, ino, mode, mtime_ns, check):
    with locked(agent, part) as fd:
        seen = os.fstat(fd)
        if identity(seen, part) != ino or seen.st_size != size:
            raise Refused("ESTALE", "the part file is another one than was verified")
        if journal_of(part)[1]:
            raise Refused("ESTALE", "a data server may still write to the part file")
        finish(agent, fd, part, target, size, mode, mtime_ns, check)
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


def quarantine(agent, part, journal):
    bad = part[: -len(PART)] + BAD
    os.rename(raw(part), raw(bad))
    remove(raw(journal))
    return {"path": bad}
