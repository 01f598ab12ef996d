"""Move one file to many nodes, and tell of each as it ends: `python distribute.py SOURCE TARGET...`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import rrmove


async def push(source: Path, targets: list[str], inventory: rrmove.Inventory) -> list[str]:
    """Move it to all of them; gives the names of those that did not get it."""
    failed = []
    async for outcome in rrmove.distribute(source, targets, inventory=inventory):
        name = outcome.request.node.name
        if outcome.ok:
            print(f"{name}: {outcome.destination}, {outcome.bytes_sent} bytes sent in {outcome.seconds:.1f} s")
        else:
            failed.append(name)
            print(outcome.error, file=sys.stderr)
    return failed


def main() -> int:
    """Push; 0 where all have the file, 1 where one has not, 2 where the call is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("targets", nargs="+", metavar="target", help="NODE, NODE:PATH, @tag")
    parser.add_argument("--ssh-config", type=Path, help="instead of ~/.ssh/config, as `ssh -F`")
    wanted = parser.parse_args()
    try:
        inventory = rrmove.load_inventory(ssh_config=wanted.ssh_config)
        failed = asyncio.run(push(wanted.source, wanted.targets, inventory))
    except rrmove.UsageError as error:  # a wrong path, an unknown node: nothing was sent to anyone
        print(f"cannot even try: {error}", file=sys.stderr)
        return error.exit_code
    if failed:
        print(f"run it again for {', '.join(failed)}: it goes on from what is there", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
