"""The agent: what runs at the far end of a lane, streamed there over the connection's own stdin.

Standard library only, Python 3.6 or newer; nothing is installed and nothing stays. What is sent is one
text, put together by `rrmove.ssh.boot`: the files of this directory without what they import of one
another, so that their names, which share one namespace there, have to differ. The data server lands
files by the same functions, which is what this module gives.

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

from rrmove.ssh.agent.common import BAD, JOURNAL, PART, Refused, remove
from rrmove.ssh.agent.disk import BLOCK, Disk, digests
from rrmove.ssh.agent.journal import ADMITTED, admit, identity, journal_of, shut_out
from rrmove.ssh.agent.landing import commit, open_part

__all__ = [
    "ADMITTED",
    "BAD",
    "BLOCK",
    "JOURNAL",
    "PART",
    "Disk",
    "Refused",
    "admit",
    "commit",
    "digests",
    "identity",
    "journal_of",
    "open_part",
    "remove",
    "shut_out",
]
