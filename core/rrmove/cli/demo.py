"""`rrmove demo`: a move onto a node in this very process, over a link that keeps breaking."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rrmove.errors import IntegrityError
from rrmove.units import format_rate, format_seconds, format_size

if TYPE_CHECKING:
    from rrmove.cli.arguments import DemoCommand
    from rrmove.events import Event

LIFE = 6_000_000  # bytes; where one provider's firewall reset every connection
RATE = 40e6  # bytes a second: a link on which one can watch


def run(command: DemoCommand) -> int:
    """Move a file of random bytes over connections that are reset, and tell what happened."""
    from rrmove.events import AttemptStarted, ConnectionLost, Verified
    from rrmove.model import Node, SSHSettings
    from rrmove.moving import move_sync
    from rrmove.testing import EmbeddedNode, Faults

    lost: list[ConnectionLost] = []

    def told(event: Event) -> None:
        match event:
            case AttemptStarted():
                _say(f"  {event.transport} begins: {format_size(event.missing)} to send")
            case ConnectionLost():
                lost.append(event)
                if len(lost) <= 3:
                    _say(f"  a connection was cut after {event.age:.1f} s; its unfinished pieces go to the others")
                elif len(lost) == 4:
                    _say("  ... and so on; spare connections are now opened ahead of time")
            case Verified():
                _say("  everything was read back on the node and compared, piece by piece")

    with tempfile.TemporaryDirectory(prefix="rrmove-demo-") as folder:
        source = Path(folder) / "model.pth"
        _fill(source, command.size)
        faults = Faults(reset_after_bytes=LIFE, rate=RATE)
        # Nothing is to be learned from a node that is gone in a moment: the state stays in the folder.
        os.environ["XDG_STATE_HOME"] = folder
        with EmbeddedNode(faults, name="demo-node") as embedded:
            _say(f"A node is started on this machine. Its link carries {format_rate(RATE)},")
            _say(f"and every connection to it is reset after {format_size(LIFE)}, as some firewalls do.")
            _say(f"scp could not move our file of {format_size(command.size)} there. rrmove auto model.pth demo-node:")
            _say("")
            node = Node(name="demo-node", ssh=SSHSettings(config=embedded.ssh_config))
            outcome = move_sync(source, node, on_event=told)
            arrived = embedded.home / source.name
            if _sha256(arrived) != _sha256(source):
                raise IntegrityError("the demo's file differs on the node", node=node.name)
            _say("")
            print(  # noqa: T201  the result of the command
                f"model.pth arrived whole: {format_size(command.size)} in {format_seconds(outcome.seconds)} "
                f"over {embedded.logins} connections, {embedded.resets} of which were cut.\n"
                f"{outcome.bytes_sent / max(1, command.size):.2f} bytes were sent for each byte of the file. "
                f"SHA-256, of the file and of what is on the node's disk:\n  {_sha256(arrived)}"
            )
    return 0


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for at in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - at)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
