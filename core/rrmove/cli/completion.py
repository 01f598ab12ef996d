"""`rrmove completion`: a shell's completion script; shtab's one place."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from rrmove.cli.parser import build_parser
from rrmove.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rrmove.cli.arguments import CompletionCommand

FILES = {"source", "nodes", "ssh_config"}
NODES = {"target", "targets", "nodes_named"}


def run(command: CompletionCommand) -> int:
    """Print the script: files are offered for SOURCE, the known nodes for TARGET and NODE."""
    try:
        import shtab
    except ImportError:
        raise UsageError(
            "completion scripts are written by shtab, which is not installed",
            remedy="Install it beside rrmove: `pip install shtab`",
        ) from None

    parser = build_parser()
    known = shtab.cmd("rrmove nodes --names 2>/dev/null")
    for action in _actions(parser):
        if action.dest in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in NODES:
            action.complete = known  # type: ignore[attr-defined]
    sys.stdout.write(shtab.complete(parser, shell=command.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to list them
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - likewise
            for below in action.choices.values():
                yield from _actions(below)
