"""Measures: how large and how quick all is that the suite sends."""

from __future__ import annotations

from rrmove.testing.faults import Faults

MB = 1_000_000
GRAIN = 2 << 20  # bytes of a chunk, for files as small as these
SIZE = 3 * MB + 1  # a chunk and a half
RATE = 6e6  # bytes a second: slow enough to be caught in the middle, and half a second for SIZE
LINK = Faults(rate=8e6)
