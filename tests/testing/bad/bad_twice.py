"""Two distributions register it."""

from courier import Courier


class Plugin(Courier):
    name = "bad_twice"
