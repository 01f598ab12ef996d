"""Common: how the agent refuses, and how it names files; all its pieces use it."""

import errno
import os

PART, JOURNAL, BAD = ".rrmove-part", ".rrmove-journal", ".rrmove-bad"


class Refused(Exception):
    """An operation cannot be done; the name is symbolic like an errno."""

    def __init__(self, name, text, **more):
        Exception.__init__(self, text)
        self.fields = dict(more, errno=name, text=text)


def trouble(error):
    name = errno.errorcode.get(error.errno or 0, "EIO")
    return {"errno": name, "text": error.strerror or str(error)}


def raw(path):
    """Give a path as bytes: names need not be text, and the node's locale must not matter."""
    return path.encode("utf-8", "surrogateescape")


def text(path):
    return path.decode("utf-8", "surrogateescape")


def home():
    return raw(os.path.expanduser("~"))


def remove(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
