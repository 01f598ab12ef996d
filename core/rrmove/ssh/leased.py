"""Leased: runs on the node; a program there that ends by itself when nobody renews its lease.

Standard library only, Python 3.6 or newer; streamed over a lane with the text of a duty behind it,
which calls `main(Duty)`. Nothing is installed. It leaves the lane's process at once, so that a
connection that is cut costs nothing; what binds it to us is the lease: every question that is
asked renews it, and after `lease` seconds without one it ends, and all that it has started. So
nothing of ours survives us, whatever ends us.

Questions come over a socket in a directory that only the user can enter. A duty has

    Duty(given, folder)     what it is given, and its own directory, which is removed at its end
    begin()                 start; not to block
    answer(question)        bytes in, bytes out; within two seconds
    end()                   stop what was started; may be called at any time, and again
"""

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time

TICK = 0.1  # s between two looks at the clock


def main(duty):
    given = json.loads(sys.stdin.buffer.read().decode("ascii"))
    folder = tempfile.mkdtemp(prefix="rrmove-")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(folder, "asked"))
    listener.listen(8)
    pid = os.fork()
    if pid:
        sys.stdout.write(json.dumps({"folder": folder, "pid": pid}))
        sys.stdout.flush()
        os._exit(0)
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    serve(duty(given, folder), listener, folder, given["lease"])


def serve(duty, listener, folder, lease):
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    try:
        duty.begin()
        listener.settimeout(TICK)
        renewed = time.monotonic()
        while not told.is_set() and time.monotonic() - renewed < lease:
            try:
                asked, _ = listener.accept()
            except socket.timeout:
                continue
            renewed = time.monotonic()
            if not reply(duty, asked):
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            duty.end()
        finally:
            os.killpg(0, signal.SIGKILL)


def reply(duty, asked):
    """Answer one question; false where it was the last."""
    asked.settimeout(2.0)
    try:
        question = b""
        while True:
            piece = asked.recv(1 << 16)
            if not piece:
                break
            question += piece
        if question == b"end":
            duty.end()  # before we say so
            return False
        asked.sendall(duty.answer(question))
    except OSError:
        pass  # who asked has gone
    finally:
        asked.close()
    return True
