"""The command `rrmove`: argv in, exit code out.

Nothing that is slow to load is imported here: each command brings its own.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rrmove.cli import failure
from rrmove.cli.arguments import (
    AutoCommand,
    CleanCommand,
    Command,
    CompletionCommand,
    DemoCommand,
    NewPluginCommand,
    NodesCommand,
    PlanCommand,
    PluginsCommand,
    ProbeCommand,
    ServeCommand,
    parse,
)
from rrmove.cli.text import accept_any_name

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. No exception escapes, and no traceback is shown.

    0 moved and verified; 1 failed; 2 usage; 3 no viable transport; 4 integrity; 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    accept_any_name()
    try:
        try:
            command = parse(words)
        except SystemExit as end:  # argparse ends so after --help and --version; nobody else may
            return end.code if isinstance(end.code, int) else 1
        code = dispatch(command)
        sys.stdout.flush()
    except BrokenPipeError:
        failure.let_the_reader_go()
        return 1
    except BaseException as error:  # noqa: BLE001 - the last frame before the user: see failure.py
        return failure.report(error, words)
    return code


def dispatch(command: Command) -> int:  # noqa: C901  a case for each command
    """Import the module of one command, and only that, and run it."""
    match command:
        case AutoCommand():
            from rrmove.cli.errand import Errand, look_up

            errand = look_up(command)  # the login is on its way while the rest is imported
            from rrmove.cli import auto

            try:
                code = auto.run(command, errand)
            finally:
                if isinstance(errand, Errand):
                    errand.give_up()
        case PlanCommand():
            from rrmove.cli import plan

            code = plan.run(command)
        case ProbeCommand():
            from rrmove.cli import probe

            code = probe.run(command)
        case PluginsCommand():
            from rrmove.cli import plugins

            code = plugins.run(command)
        case NewPluginCommand():
            from rrmove.cli import newplugin

            code = newplugin.run(command)
        case NodesCommand():
            from rrmove.cli import nodes

            code = nodes.run(command)
        case CleanCommand():
            from rrmove.cli import clean

            code = clean.run(command)
        case ServeCommand():
            from rrmove.cli import serve

            code = serve.run(command)
        case DemoCommand():
            from rrmove.cli import demo

            code = demo.run(command)
        case CompletionCommand():
            from rrmove.cli import completion

            code = completion.run(command)
    return code
