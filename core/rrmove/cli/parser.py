"""What can be typed after `rrmove`, and the help that goes with it."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rrmove.cli.text import printable
from rrmove.cli.values import count, duration, hex_digest, mirror, names, port, priority, rate, root, setting, size
from rrmove.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """\
usage: rrmove COMMAND ...

Get a file onto a flaky node, whole: by the best way that the node offers
today, resumed where a connection breaks, and verified on the node before it
takes its name.

    rrmove auto model.pth gpu-3            into the node's own directory
    rrmove auto model.pth gpu-3:/data/     under its own name
    rrmove auto model.pth ubuntu@10.0.0.7:/data/best.pth
    rrmove auto https://host/model.pth gpu-3    the node fetches it itself
    rrmove auto model.pth gpu-3 gpu-4 @vast     to many nodes, side by side

Move
    auto SOURCE TARGET... move a file; a repeat goes on where it stopped
Look, and move nothing
    plan SOURCE TARGET    what `auto` would do, and why, in seconds
    probe NODE...         what nodes offer
    plugins               the transports, and what is wrong with the others
    nodes                 the nodes that can be named
Serve
    serve --root NAME=DIR this machine's directories, over HTTP
Extend
    plugin new NAME       begin a transport of your own
Care
    clean NODE            remove what interrupted moves left on a node
    demo                  see a move over a link that keeps breaking
    completion SHELL      a completion script for bash, zsh, fish or tcsh

    rrmove COMMAND --help   the options of a command, with examples
    rrmove --version        which one this is

Exit codes: 0 done; 1 failed; 2 usage; 3 no transport can serve; 4 what
arrived is not what was sent; 130 interrupted, to be resumed.
"""

AUTO = """\
Move SOURCE to TARGET by the best transport that the node offers, and by the
next one where that fails. No verified byte is sent twice. The file takes its
name only when every byte of it was read back on the node; until then a file
of that name stays as it was."""

AUTO_EXAMPLES = """\
SOURCE is a local file, or an http or https URL: the node fetches that itself,
and where it cannot reach it, it goes through this machine. TARGET is NODE,
NODE:PATH or @tag, where NODE is a name from the inventory or from ssh_config,
or user@host. A PATH that ends in / or is a directory receives the file under
its own name. Without a PATH the file lands in the node's `dest`, or else in
its home directory. With several TARGETs, or a tag that several nodes have, a
node that fails holds up no other; exits with 1 where any did not get the file.

    rrmove auto model.pth gpu-3
    rrmove auto model.pth gpu-3:/data/ --limit-rate 50M
    rrmove auto model.pth gpu-3 --without rsync
    rrmove auto model.pth gpu-3:/data/ @vast
    rrmove auto https://host/model.pth gpu-3 --sha256 HEX
    rrmove auto ./v2:final.pth gpu-3     a name with a colon begins with ./
"""

PLAN = """\
Look at the node and show how SOURCE would be moved: the transports in the
order in which they would be tried, the seconds each is expected to take and
where they come from, and why others cannot serve. Moves nothing. For several
nodes also who reaches whom, who would be sent the file first, and who would
pull it from whom. Exits with 3 where no transport can serve, with 1 where one
of several nodes could not be looked at."""

PROBE = """\
Look at nodes, all at once, and show what was found there. Exits with 1 where
a node could not be reached."""

PLUGINS = """\
List the transports that are installed, and what is wrong with those that
cannot be used; or show one of them, with its settings and their defaults."""

PLUGIN = """\
Write a distribution with a transport that works as it is, its entry point,
its tests and a CI file: to be changed into one of your own."""

CLEAN = """\
Remove the part files that interrupted moves left on a node, and print what
was removed. Files that were moved are not touched; a move whose part file is
gone starts over."""

SERVE = """\
Serve directories of this machine over HTTP, to those who have the token: files
with ranges and digests, and uploads that can be resumed and take their name
only when all of it was verified. TLS with a certificate of its own, which
clients know by its fingerprint. Ends at SIGTERM or Ctrl-C. The log, a JSON
object a line, goes to stderr."""

SERVE_EXAMPLES = """\
A root is NAME=DIRECTORY, to be read; with :w to be written, with :rw both.

    rrmove serve --root data=/data:rw
    rrmove serve --root models=/srv/models --root inbox=/srv/inbox:w
    rrmove serve --root data=/data --plain --listen 100.64.0.7

The token and the certificate are made at the first start, beside the state
file `serve-PORT.json` in ~/.local/state/rrmove.
"""

COMPLETION = "Print the completion script of a shell."
COMPLETION_EXAMPLES = """\
bash: rrmove completion bash > ~/.local/share/bash-completion/completions/rrmove
zsh:  rrmove completion zsh > "${fpath[1]}/_rrmove"
fish: rrmove completion fish > ~/.config/fish/completions/rrmove.fish
"""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError, so that all errors look alike."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong, with the place where help is."""
        words = message.removeprefix("argument ").replace("the following arguments are required: ", "missing: ")
        raise UsageError(printable(words), remedy=f"See `{self.prog} --help`")


class Top(Parser):
    """The parser of `rrmove` itself: its help is written by hand, in groups."""

    def format_help(self) -> str:
        """Give the overview of all commands."""
        return HELP


class Version(argparse.Action):
    """Print the version; looked up only here, since reading the metadata takes its time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it and end."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("rrmove")
        except PackageNotFoundError:
            number = "(not installed: run from its source tree)"
        sys.stdout.write(f"rrmove {number}\n")
        parser.exit()


def build_parser() -> Parser:
    """Describe the whole command line."""
    top = Top(prog="rrmove", allow_abbrev=False)
    top.add_argument("--version", action=Version, nargs=0, help="print the version and end")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, summary: str, description: str = "", examples: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=description or f"{summary[0].upper()}{summary[1:]}.",
            epilog=examples,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    auto = command("auto", "move a file", AUTO, AUTO_EXAMPLES)
    auto.add_argument("source", metavar="SOURCE", help="a local file, or a URL")
    auto.add_argument("targets", metavar="TARGET", nargs="+", help="where to, see below")
    _add_options(auto)
    auto.add_argument("--at-once", metavar="N", type=count, help="work on so many nodes at the same time (default: 16)")
    _add_access(auto)
    _add_output(auto, "print what happens as JSON lines; the last one is the outcome", verbosity=True)

    plan = command("plan", "show how a file would be moved", PLAN)
    plan.add_argument("source", metavar="SOURCE", help="a local file, or a URL")
    plan.add_argument("targets", metavar="TARGET", nargs="+", help="NODE, NODE:PATH or @tag")
    _add_options(plan)
    _add_access(plan)
    _add_output(plan, "print the plan, or the plans, as one JSON object")

    probe = command("probe", "show what nodes offer", PROBE)
    probe.add_argument("nodes_named", metavar="NODE", nargs="+", help="a node, or @tag for several")
    _add_access(probe)
    _add_output(probe, "print one JSON object a line and node")

    plugins = command("plugins", "list the transports that are installed", PLUGINS)
    plugins.add_argument("name", metavar="NAME", nargs="?", help="a transport, to see its settings")
    _add_plugin(plugins)
    _add_output(plugins, "print one JSON object a line and transport")
    plugins.add_argument("-v", "--verbose", action="store_true", help="show the traceback of what failed to load")

    plugin = command("plugin", "begin a transport of your own", PLUGIN)
    new = plugin.add_subparsers(dest="deed", metavar="new NAME", required=True).add_parser(
        "new", help="write a distribution", description=PLUGIN, allow_abbrev=False
    )
    new.add_argument("name", metavar="NAME", help="what the transport is called, as in --only NAME")
    new.add_argument("--directory", metavar="DIR", help="where to write it (default: rrmove-NAME)")

    nodes = command("nodes", "list the nodes that can be named")
    nodes.add_argument("--names", action="store_true", help="print nothing but the names")
    _add_access(nodes, login=False)
    _add_output(nodes, "print one JSON object a line and node")

    clean = command("clean", "remove what interrupted moves left on a node", CLEAN)
    clean.add_argument("target", metavar="NODE", help="the node, or NODE:DIRECTORY to look in another directory")
    clean.add_argument(
        "--older-than",
        metavar="AGE",
        type=duration,
        default=0.0,
        help="keep what was written to since; 90s, 30m, 12h, 7d (default: remove all)",
    )
    _add_access(clean)
    _add_output(clean, "print one JSON object")

    _add_serve(command("serve", "serve directories of this machine", SERVE, SERVE_EXAMPLES))

    demo = command("demo", "show a move over a link that keeps breaking; needs no node")
    demo.add_argument("--size", type=size, default="64M", help="how large a file to move (default: 64M)")

    completion = command("completion", "print a completion script", COMPLETION, COMPLETION_EXAMPLES)
    completion.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"), help="for which shell")
    return top


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--root", dest="roots", metavar="NAME=DIR", type=root, action="append", help="what to serve: NAME=DIR[:r|w|rw]"
    )
    serve.add_argument("--openapi", action="store_true", help="print the description of the interface, and end")
    where = serve.add_argument_group("where")
    where.add_argument(
        "--listen",
        dest="addresses",
        metavar="ADDRESS",
        action="append",
        help="an address of this machine (default: all)",
    )
    where.add_argument("--port", type=port, default=8780, help="the port; 0 takes a free one (default: 8780)")
    where.add_argument(
        "--plain", action="store_true", help="no TLS; on loopback (the default then) and Tailscale addresses only"
    )
    where.add_argument(
        "--plain-anywhere", action="store_true", help="no TLS, on any address: the token can be overheard"
    )
    secrets = serve.add_argument_group("secrets")
    secrets.add_argument("--token-file", metavar="FILE", type=Path, help="the token; made if it is not there")
    secrets.add_argument("--certificate", metavar="FILE", type=Path, help="key and certificate (PEM); made likewise")
    limits = serve.add_argument_group("limits")
    limits.add_argument("--max-connections", metavar="N", type=count, default=256, help="at once (default: 256)")
    limits.add_argument(
        "--max-body", metavar="SIZE", type=size, default="64MiB", help="of one PUT at most (default: 64MiB)"
    )
    limits.add_argument(
        "--patience",
        metavar="SECONDS",
        type=duration,
        default=20.0,
        help="a client may be silent this long (default: 20)",
    )
    _add_output(serve, "print where it serves as one JSON object")


def _add_options(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_argument_group("which transports")
    choice.add_argument("--only", metavar="A,B", type=names, action="append", help="try none but these")
    choice.add_argument("--without", metavar="A,B", type=names, action="append", help="do not try these")
    _add_plugin(choice)
    choice.add_argument(
        "-o",
        dest="settings",
        metavar="NAME.KEY=VALUE",
        type=setting,
        action="append",
        help="set something of a transport; `rrmove plugins NAME` lists what there is",
    )
    limits = parser.add_argument_group("limits and checks")
    limits.add_argument("--limit-rate", metavar="RATE", type=rate, help="bytes a second at most: 50M, 800k, 1.5G")
    limits.add_argument(
        "--priority",
        metavar="N",
        type=priority,
        help="weight beside other moves under the limits of the inventory, 1 to 100 (default: 10): 30 gets three "
        "times as much as 10",
    )
    limits.add_argument("--deadline", metavar="SECONDS", type=duration, help="give up after this long: 90, 30m, 2h")
    limits.add_argument(
        "--sha256",
        metavar="HEX",
        type=hex_digest,
        help="what `sha256sum` prints for the file; checked at both ends",
    )
    parser.add_argument_group("more sources").add_argument(
        "--mirror",
        metavar="URL",
        dest="mirrors",
        type=mirror,
        action="append",
        help="where the node can get this very file, too; may be repeated, aria2 uses all at once",
    )


def _add_plugin(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--plugin",
        dest="plugins",
        metavar="FILE",
        action="append",
        help="a Python file with a transport that is not installed",
    )


def _add_access(parser: argparse.ArgumentParser, *, login: bool = True) -> None:
    access = parser.add_argument_group("how to get to the node")
    access.add_argument(
        "--nodes",
        metavar="FILE",
        type=Path,
        help="the inventory (default: $RRMOVE_NODES, ./rrmove.toml, then your configuration)",
    )
    access.add_argument("-F", dest="ssh_config", metavar="FILE", type=Path, help="an ssh_config, as for `ssh -F`")
    if login:
        access.add_argument(
            "--ssh",
            choices=("auto", "openssh", "paramiko"),
            default="auto",
            help="what to log in with (default: the ssh program, paramiko where there is none)",
        )


def _add_output(parser: argparse.ArgumentParser, json: str, *, verbosity: bool = False) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help=json)
    if verbosity:
        volume = output.add_mutually_exclusive_group()
        volume.add_argument("-q", "--quiet", action="store_true", help="print errors only")
        volume.add_argument("-v", "--verbose", action="store_true", help="say all that happens")


COMMANDS = ("auto", "plan", "probe", "plugins", "plugin", "nodes", "clean", "serve", "demo", "completion")


def check_command(argv: Sequence[str]) -> None:
    """Answer an unknown or forgotten command with what was probably meant. Raises UsageError."""
    word = next(iter(argv), None)
    if word is None:
        raise UsageError("no command was given", remedy="See `rrmove --help`")
    if word.startswith("-") or word in COMMANDS:
        return
    remedy = "See `rrmove --help`"
    if near := difflib.get_close_matches(word, COMMANDS, n=1):
        remedy = f"Did you mean `rrmove {near[0]}`?"
    elif len(argv) > 1:
        remedy = f"To move a file: `rrmove auto {printable(' '.join(argv))}`"
    raise UsageError(f"{printable(word)!r} is no command", remedy=remedy)
