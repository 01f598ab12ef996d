"""Wire: frames in and out, and the operations that they ask for."""

import fcntl
import json
import os
import queue
import select
import struct
import threading
import time

from rrmove.ssh.agent.common import Refused, raw, trouble
from rrmove.ssh.agent.disk import BLOCK, Disk, get, hashed, settle, trim
from rrmove.ssh.agent.journal import admit
from rrmove.ssh.agent.landing import commit, locate, open_part, quarantine
from rrmove.ssh.agent.leftovers import evict, sweep
from rrmove.ssh.agent.node import hello, probe, reach, run

MAGIC = b"RRM1"
HEADER = struct.Struct(">4sII")
READY = b"\0RRMOVE-READY\n"
EVERY_BYTE = bytes(bytearray(range(256)))
PROOF = b"\nRRMOVE-BYTES " + EVERY_BYTE + READY  # before anything is said, all bytes have to get through
NOT_CLEAN = b"\nRRMOVE-NOT-CLEAN\n"
IDLE = 900.0  # an agent whose connection died without a word goes after this many seconds


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
        for duty in (self.beat, self.disk_work):
            self.thread(duty)
        self.thread(settle, self.settled)
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


def unknown(op):
    raise Refused("ENOSYS", "this agent does not know %r" % op)


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
            fcntl.fcntl(fd, 1031, 1 << 20)  # F_SETPIPE_SZ: a wider pipe, fewer switches
        except OSError:
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
