"""The outcome of a move in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrmove.cli.text import plural, printable
from rrmove.units import format_rate, format_seconds, format_size

if TYPE_CHECKING:
    from rrmove.model import Outcome


def result_line(outcome: Outcome, *, losses: int = 0, committed: bool = False, verbose: bool = False) -> str:
    """Say what was moved where, how long it took and what it took.

    `committed` tells a file that took its name just now from one that had it before.
    """
    source, node = outcome.request.source, outcome.request.node
    words = [_verdict(outcome, committed=committed)]
    if outcome.attempts:
        words.append(transports(outcome))
    if outcome.attempts or committed:
        if outcome.bytes_reused:
            words.append(f"{format_size(outcome.bytes_reused)} were there already")
        if losses:
            words.append(f"{plural(losses, 'connection')} lost")
    if outcome.unverified:
        words.append("content not verified: --sha256 does that" if not verbose else outcome.unverified)
    if verbose and outcome.digest:
        words.append(outcome.digest)
    place = f"{node.name}:{outcome.destination or outcome.request.destination}"
    return printable(f"{source.name} -> {place}  {', '.join(words)}")


def _verdict(outcome: Outcome, *, committed: bool) -> str:
    if not outcome.attempts and not committed:
        return "already there, verified, nothing sent"
    size, seconds = outcome.request.source.size, outcome.seconds
    fresh = size - outcome.bytes_reused
    rate = f" ({format_rate(fresh / seconds)})" if seconds > 0 and fresh > 0 else ""
    return f"{format_size(size)} verified in {format_seconds(seconds)}{rate}"


def transports(outcome: Outcome) -> str:
    """Name those that brought bytes, in their order: `rsync then chunked`."""
    useful = [attempt.transport for attempt in outcome.attempts if attempt.gained > 0]
    useful.append(outcome.attempts[-1].transport)
    return " then ".join(dict.fromkeys(useful))
