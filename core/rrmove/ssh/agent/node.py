"""Node: what is there, who can be reached, and programs that are run there."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

from rrmove.ssh.agent.common import Refused, text


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
