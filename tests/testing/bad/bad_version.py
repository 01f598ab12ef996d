"""It was written for a later rrmove."""

from courier import Courier


class Plugin(Courier):
    name = "bad_version"
    api_version = 99
