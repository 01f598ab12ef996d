"""SOURCE and TARGET as they were typed: which kind of place each of them names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rrmove.cli.text import printable
from rrmove.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rrmove.inventory import Inventory
    from rrmove.model import Node, Remote

Kind = Literal["local", "remote", "url", "stdin"]

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# NODE:PATH. A colon after a slash belongs to a local path, as with scp; the colons of an IPv6
# address are in brackets.
_REMOTE = re.compile(r"(?P<node>(?:[^/:@\[]*@)?(?:\[[^\]/]*\]|[^/:\[]+)):(?P<path>.*)", re.DOTALL)


def kind(text: str) -> Kind:
    """Tell what a SOURCE is. A local path begins with . or / or ~, or exists."""
    if text == "-":
        return "stdin"
    if text.startswith((".", "/", "~")) or Path(text).exists():
        return "local"
    if _URL.match(text):
        return "url"
    return "remote" if _REMOTE.fullmatch(text) else "local"


def source_of(text: str) -> Path | Remote:
    """Take a SOURCE that can be moved today: a local file, or a URL. Raises UsageError for all others."""
    from rrmove.model import Remote, Source

    shown = printable(text)
    match kind(text):
        case "stdin":
            raise UsageError(
                "standard input cannot be moved: a move that can be resumed reads its source again",
                remedy="Write it to a file first",
            )
        case "remote":
            raise UsageError(
                f"{shown} is not here: files can only be moved to a node so far, not from one",
                remedy=f"A local file whose name has a colon is written ./{shown}",
            )
        case "url":
            return Remote.at(text)
        case "local":
            return Source.of(Path(text)).path


def check_targets(source: str, targets: Sequence[str]) -> None:
    """Look at targets as they were typed. Raises UsageError where one is none, or the source comes last."""
    from rrmove.inventory import parse_target

    if not Path(source).exists() and Path(targets[-1]).is_file():
        raise UsageError(
            f"there is no file {printable(source)}",
            remedy=f"The source comes first: `rrmove auto {printable(targets[-1])} {printable(source)}`",
        )
    for target in targets:
        parse_target(target)


def one_node(target: str, inventory: Inventory) -> Node:
    """Look up a target that has to be one node, with the destination there. Raises UsageError."""
    found = inventory.resolve(target)
    node = single(found, target)
    return replace(node, destination=found[0][1] or None)


def single(found: Sequence[tuple[Node, str]], target: str) -> Node:
    """Take the one node that a word means. Raises UsageError where a tag means several."""
    if len(found) > 1:
        names = ", ".join(printable(node.name) for node, _ in found)
        raise UsageError(
            f"{printable(target)} means {len(found)} nodes, and this takes one",
            remedy=f"Name one of {names}",
        )
    return found[0][0]
