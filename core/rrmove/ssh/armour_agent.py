"""The armour's far end where the agent serves: base64 lines on one side, the agent's own pipes on the other.

It is sent as one line before the agent's own, like the agent for Python 3.6 and the standard
library only. It puts pipes in the place of descriptors 0 and 1, and then runs the next line.
"""

import base64
import io
import os
import threading
import zlib

LINE = 3000  # bytes of a line before they are encoded: 4000 characters pass through what keeps lines to 4096


def write(fd, data):
    while data:
        data = data[os.write(fd, data) :]


def strip(source, sink):
    """Decode lines; what is no line of ours is passed over."""
    rest = b""
    try:
        while True:
            got = os.read(source, 1 << 18)
            if not got:
                break
            lines = (rest + got).split(b"\n")
            rest = lines.pop()
            write(
                sink, b"".join(base64.b64decode(line[1:].strip(), validate=True) for line in lines if line[:1] == b"~")
            )
    except (OSError, ValueError):
        pass  # the agent sees its input end, and ends
    os.close(sink)


def wear(source, sink):
    """Encode what comes, as soon as it comes."""
    try:
        while True:
            got = os.read(source, LINE * 16)
            if not got:
                return
            pieces = [got[at : at + LINE] for at in range(0, len(got), LINE)]
            write(sink, b"".join(b"~" + base64.b64encode(piece) + b"\n" for piece in pieces))
    except OSError:
        os._exit(1)  # nobody listens any more


def main():
    line, told = os.dup(0), os.dup(1)
    inner, into = os.pipe()
    outof, outer = os.pipe()
    os.dup2(inner, 0)
    os.dup2(outer, 1)
    os.close(inner)
    os.close(outer)
    write(told, b"\n")
    for duty, source, sink in ((strip, line, into), (wear, outof, told)):
        threading.Thread(target=duty, args=(source, sink), daemon=True).start()


if __name__ == "__main__":
    main()
    exec(zlib.decompress(base64.b64decode(io.FileIO(0, closefd=False).readline())))
