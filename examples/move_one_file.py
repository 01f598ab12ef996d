"""Move one file and tell what became of it: `python move_one_file.py SOURCE TARGET [--ssh-config FILE]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import rrmove


def main() -> int:
    """Move it; the exit code is the one that `rrmove auto` would give."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", help="NODE, NODE:PATH or user@host:PATH")
    parser.add_argument("--ssh-config", type=Path, help="instead of ~/.ssh/config, as `ssh -F`")
    wanted = parser.parse_args()
    try:
        inventory = rrmove.load_inventory(ssh_config=wanted.ssh_config)
        outcome = rrmove.move_sync(wanted.source, wanted.target, inventory=inventory)
    except rrmove.UsageError as error:  # a wrong path, an unknown node: somebody has to mend the call
        print(f"cannot even try: {error}", file=sys.stderr)
        return error.exit_code
    except rrmove.NoRouteError as error:
        for refusal in error.refusals:
            print(f"{refusal.transport}: {refusal.reason}", file=sys.stderr)
        return error.exit_code
    except rrmove.RRMoveError as error:  # everything else; what has arrived stays, and a repeat goes on from there
        tried = error.outcome.attempts if error.outcome else ()
        print(f"failed after {len(tried)} attempts: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{outcome.destination} {outcome.digest}")
    print(f"{outcome.bytes_sent} bytes sent, {outcome.bytes_reused} were there, {outcome.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
