"""Journal: what stands beside a part file: which file it is, and whether data servers may write into it."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time

from rrmove.ssh.agent.common import JOURNAL, PART, Refused, raw

ADMITTED = b"\nadmitted\n"  # what follows the journal's first line while data servers may write into the part
LOCKING = 10.0  # s that a data server may take to write what it is writing: 4 MiB at most


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


@contextlib.contextmanager
def locked(agent, part):
    """Open a part and hold its lock; gives the descriptor."""
    fd = agent.disk.part(part)
    if fd is None:
        raise Refused("ENOENT", "the part file is gone")
    try:
        with alone(fd):
            yield fd
    finally:
        os.close(fd)


def admit(agent, part, journal, ino, servers=1):
    """Let data servers write, until `shut_out`; or (0) none, and just have all who verified the part do so anew.

    It changes the part's identity, which is in the answer.
    """
    with locked(agent, part) as fd:
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
