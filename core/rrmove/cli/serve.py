"""`rrmove serve`: the data server, until it is stopped."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rrmove.cli.jsonlines import dumps
from rrmove.cli.table import show
from rrmove.cli.text import printable
from rrmove.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rrmove.cli.arguments import ServeCommand


def run(command: ServeCommand) -> int:
    """Serve, or print the interface. Raises UsageError and Fatal; ends the process with 0 after a graceful stop."""
    if command.openapi:
        import rrmove.serving

        show([(Path(rrmove.serving.__file__).with_name("openapi.json")).read_text(encoding="utf-8").rstrip()])
        return 0
    if not command.roots:
        raise UsageError("no root was named", remedy="Say what to serve: rrmove serve --root data=/data:rw")
    _be_an_agent()
    from rrmove.serving.running import Settings, serve

    settings = Settings(
        roots=command.roots,
        addresses=command.addresses,
        port=command.port,
        plain=command.plain or command.plain_anywhere,
        plain_anywhere=command.plain_anywhere,
        token_file=command.token_file,
        certificate=command.certificate,
        connections=command.connections,
        most_body=command.most_body,
        patience=command.patience,
    )

    def announce(state: Mapping[str, object]) -> None:
        if command.output.json:
            show([dumps(state)])
        else:
            show(_announcement(state))
        sys.stdout.flush()

    serve(settings, announce)
    sys.stdout.flush()
    # What threads still read back is given up, or the end would wait for it: nothing is lost by that.
    os._exit(0)


def _be_an_agent() -> None:
    """Start anew with RRMOVE_AGENT=1, in this very process.

    What else writes to a part file is ended by a move that goes on with it ("evict"). This server
    writes as an agent does: positional, and never into a file that has been committed. Others see
    the environment that a process began with, hence the new start.
    """
    if os.environ.get("RRMOVE_AGENT") != "1":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "RRMOVE_AGENT": "1"})  # noqa: S606 - it is ourselves


def _announcement(state: Mapping[str, object]) -> list[str]:
    port, scheme = state["port"], state["scheme"]
    addresses = [f"[{each}]" if ":" in each else each for each in map(str, state["addresses"])]  # type: ignore[call-overload]
    lines = [f"serving on {', '.join(f'{scheme}://{address}:{port}' for address in addresses)}"]
    if state["fingerprint"]:
        lines.append(f"certificate  sha256 {state['fingerprint']}")
        lines.append(f"for curl     --insecure --pinnedpubkey {state['pin']}")
    lines.append(f"token        in {printable(str(state['token_file']))}")
    roots: list[dict[str, str]] = state["roots"]  # type: ignore[assignment]
    lines += [f"root         {root['name']} ({root['access']}): {printable(root['path'])}" for root in roots]
    return lines
