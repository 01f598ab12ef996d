"""Move one file and print what happens meanwhile: `python watch_events.py SOURCE TARGET [--ssh-config FILE]`.

The form for a program that has an event loop already, such as a daemon. To leave the loop early
cancels the move; what has arrived stays on the node, and the next move goes on from there.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import aclosing
from pathlib import Path

import rrmove


async def follow(source: Path, target: str, inventory: rrmove.Inventory) -> None:
    """Print the events that matter here. Raises what `rrmove.move()` raises."""
    # aclosing() ends the move at once where this task is cancelled or something below raises.
    async with aclosing(rrmove.watch(source, target, inventory=inventory)) as events:
        async for event in events:
            match event:
                case rrmove.Planned(node, plan):
                    print(f"{node}: will try {', '.join(step.transport for step in plan.steps)}")
                case rrmove.AttemptStarted(node, transport, missing, size):
                    print(f"{node}: {transport} begins, {missing} of {size} bytes are missing")
                case rrmove.Progressed(node, durable, size) if size:
                    print(f"{node}: {durable * 100 // size} %", end="\r")
                case rrmove.ConnectionLost(node, age=age):
                    print(f"{node}: a connection was lost after {age:.1f} s; the move goes on")
                case rrmove.Waiting(node, seconds, reason):
                    print(f"{node}: waiting {seconds} s: {reason}")
                case rrmove.Committed(node, destination):
                    print(f"{node}: stands as {destination}, verified")
                case rrmove.Finished(node, outcome):  # always the last one, after a failure too
                    print(f"{node}: {'done' if outcome.ok else 'failed'} after {outcome.seconds:.1f} s")
                case _:
                    pass  # new kinds of events may come with new versions


def main() -> int:
    """Move it; the exit code is the one that `rrmove auto` would give."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", help="NODE, NODE:PATH or user@host:PATH")
    parser.add_argument("--ssh-config", type=Path, help="instead of ~/.ssh/config, as `ssh -F`")
    wanted = parser.parse_args()
    try:
        inventory = rrmove.load_inventory(ssh_config=wanted.ssh_config)
        asyncio.run(follow(wanted.source, wanted.target, inventory))
    except rrmove.RRMoveError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
