"""The lab by hand: `python -m tests.lab up`, then `exec`, `on`, `path`, `stats`, and `down`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from tests.lab import PROVIDERS, Lab, LabError, Profile
from tests.lab.cluster import DIRECTORY


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks for."""
    wanted = _parser().parse_args(argv)
    directory: Path = wanted.directory
    try:
        if wanted.verb == "up":
            _up(wanted, directory)
        elif wanted.verb == "down":
            if (directory / "lab.json").exists():
                Lab.attach(directory).down()
            else:
                Lab([], directory).down()
        else:
            _use(wanted, Lab.attach(directory))
    except (LabError, KeyError, ValueError, TypeError) as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    return 0


def _up(wanted: argparse.Namespace, directory: Path) -> None:
    if wanted.profiles:
        text = sys.stdin.read() if wanted.profiles == "-" else Path(wanted.profiles).read_text()
        profiles = [Profile.from_json(values) for values in json.loads(text)]
    else:
        profiles = []
    named = wanted.names or ([] if profiles else list(PROVIDERS))
    if unknown := [name for name in named if name not in PROVIDERS]:
        message = f"no profile {', '.join(unknown)}; there are {', '.join(PROVIDERS)}"
        raise ValueError(message)
    profiles += [PROVIDERS[name] for name in named]
    lab = Lab(profiles, directory, uplink=wanted.uplink, seed=wanted.seed).up()
    for name in lab.names:
        sys.stdout.write(f"{name} {lab.address(name)}\n")


def _use(wanted: argparse.Namespace, lab: Lab) -> None:
    if wanted.verb == "exec":
        command = lab.as_client(wanted.command)
        os.execvpe(command[0], command, lab.environment())
    elif wanted.verb == "on":
        command, environment = lab.enter(wanted.node, wanted.command)
        os.execvpe(command[0], command, environment)
    elif wanted.verb == "path":
        sys.stdout.write(f"{lab.path(wanted.node, wanted.path)}\n")
    else:
        counts = {
            name: {"connects": lab.connects(name), "resets": lab.resets(name), "bytes_to": lab.bytes_to(name)}
            for name in lab.names
        }
        sys.stdout.write(json.dumps(counts, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help=f"where the lab's state is ({DIRECTORY})")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="build the lab, in place of the one that is up")
    up.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PROVIDERS)}; none: all")
    up.add_argument("--profiles", metavar="FILE", help="a JSON list of further profiles; - is standard input")
    up.add_argument("--uplink", metavar="RATE", help="the client's own link, for instance 160mbit")
    up.add_argument("--seed", type=int, default=7)
    run = verbs.add_parser("exec", help="run a command as the client host")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD")
    on = verbs.add_parser("on", help="run a command on a node")
    on.add_argument("node", metavar="NODE")
    on.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD")
    path = verbs.add_parser("path", help="say where a node's path lies on this machine")
    path.add_argument("node", metavar="NODE")
    path.add_argument("path", metavar="PATH")
    verbs.add_parser("stats", help="count, per node: connections asked for, connections cut, bytes sent there")
    verbs.add_parser("down", help="take the lab apart")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
