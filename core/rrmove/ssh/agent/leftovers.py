"""Leftovers: strangers that still have a part file open, and old part files that nobody has."""

import os
import signal
import time

from rrmove.ssh.agent.common import BAD, JOURNAL, PART, Refused, home, raw, remove, text
from rrmove.ssh.agent.journal import shut_out


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
