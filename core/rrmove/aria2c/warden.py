"""Warden: runs on the node; an aria2c that is ours alone, and ends with us.

Standard library only, Python 3.6 or newer; it is streamed behind `leased.py`, as the duty of a leased
program. aria2c listens on the loopback only; its secret is in a file that only the user can read, in
a directory that only the user can enter. So is what it needs to continue: the part file is known
there by a link, and its control file lies beside the link, not beside the part file.

Where it fetches from us, it does so through a door of the warden's: that is where TLS is spoken, the
certificate compared with the one we made, and the token added, which aria2c would send to the
mirrors, too.
"""

import base64
import hashlib
import http.client
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import threading
import time

STARTING = 5.0  # s for aria2c to listen
PIECE = 1 << 18


class Warden:
    def __init__(self, given, folder):
        self.given, self.folder = given, folder
        self.process, self.port, self.doors = None, None, []
        self.more, self.words = {}, []  # options that are known here only, and words for its command line

    def begin(self):
        given = self.given
        os.symlink(given["part"].encode("utf-8", "surrogateescape"), os.path.join(self.folder, "file").encode())
        with open(os.path.join(self.folder, "file.aria2"), "wb") as control:
            control.write(base64.b64decode(given["control"]))
        for door in given["doors"]:
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
            listener.listen(32)
            self.doors.append(listener.getsockname()[1])
            threading.Thread(target=self.keep, args=(listener, door), daemon=True).start()
        self.start()

    def start(self):
        chosen = socket.socket()
        chosen.bind(("127.0.0.1", 0))
        self.port = chosen.getsockname()[1]
        chosen.close()
        options = dict(
            self.given["options"],
            **self.more,
            **{
                "dir": self.folder,
                "enable-rpc": "true",
                "rpc-listen-all": "false",
                "rpc-listen-port": str(self.port),
                "rpc-secret": self.given["secret"],
                "stop-with-process": str(os.getpid()),
            },
        )
        conf = os.path.join(self.folder, "conf")
        fd = os.open(conf, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as out:
            out.write("".join("%s=%s\n" % pair for pair in sorted(options.items())))
        with open(os.path.join(self.folder, "log"), "wb") as log:
            self.process = subprocess.Popen(
                ["aria2c", "--conf-path=" + conf, *self.words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip

    def answer(self, question):
        if question == b"doors":
            return json.dumps(self.doors).encode("ascii")
        if question == b"control":
            try:
                with open(os.path.join(self.folder, "file.aria2"), "rb") as control:
                    return control.read()
            except FileNotFoundError:
                return b""  # aria2c removes it when it has everything
        return self.forward(question)

    def forward(self, question):
        """Pass a question on to aria2c over its JSON-RPC; where it has ended, say so in its own form."""
        until = time.monotonic() + 1.5
        while True:
            if self.process.poll() is not None:
                with open(os.path.join(self.folder, "log"), "rb") as log:
                    said = log.read()[-300:].decode("utf-8", "replace").strip()
                words = "aria2c ended with status %d: %s" % (self.process.returncode, said)
                return json.dumps({"error": {"code": -1, "message": words}}).encode("ascii")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1.5)
            try:
                connection.request("POST", "/jsonrpc", question, {"Content-Type": "application/json"})
                return connection.getresponse().read()
            except OSError as error:
                if time.monotonic() > until:
                    words = "aria2c does not answer: %s" % error
                    return json.dumps({"error": {"code": -2, "message": words}}).encode("ascii")
                time.sleep(0.03)  # it has not begun to listen yet
            finally:
                connection.close()

    def end(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    # The way to us

    def keep(self, listener, door):
        while True:
            ours, _ = listener.accept()
            threading.Thread(target=self.pass_on, args=(ours, door), daemon=True).start()

    def pass_on(self, ours, door):
        """Carry one connection: requests there, each with the token added, and answers back.

        In one thread: OpenSSL does not read and write on one connection at the same time, and where it is
        tried, now and then neither comes to an end.
        """
        theirs = None
        try:
            theirs = socket.create_connection((door["host"], door["port"]), 5.0)
            if door["fingerprint"]:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS)
                theirs = context.wrap_socket(theirs)
                if hashlib.sha256(theirs.getpeercert(True)).hexdigest() != door["fingerprint"]:
                    raise OSError("another certificate than ours")
            mark = ("\r\nAuthorization: Bearer %s\r\n\r\n" % door["token"]).encode("ascii")
            buffer = memoryview(bytearray(PIECE))
            asked = b""
            while True:
                ready = select.select([ours, theirs], [], [])[0]
                if ours in ready:
                    piece = ours.recv(1 << 16)
                    if not piece:
                        return
                    # A GET has a head and nothing behind it.
                    head, end, asked = (asked + piece).rpartition(b"\r\n\r\n")
                    if end:
                        theirs.settimeout(None)
                        theirs.sendall(head.replace(b"\r\n\r\n", mark) + mark)
                if theirs in ready and not self.bring(theirs, ours, buffer):
                    return
        except (OSError, ValueError):
            pass  # aria2c finds its connection closed, and asks again
        finally:
            ours.close()
            if theirs is not None:
                theirs.close()

    def bring(self, theirs, ours, buffer):
        """Pass on what has come; false at its end. That there is something need not mean that it is for us."""
        theirs.settimeout(0)
        try:
            while True:
                got = theirs.recv_into(buffer)
                if not got:
                    return False
                ours.sendall(buffer[:got])
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
