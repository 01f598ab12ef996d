"""torrent: all nodes that a file goes to give each other its pieces; our line carries each of them once or twice."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from rrmove import API_VERSION, CLIENT, PORTS, REACH, TOOLS, Capabilities, Probe, Unusable
from rrmove_plugins.torrent.settings import TorrentSettings

if TYPE_CHECKING:
    from rrmove import Facts, Job, Request

# Looked for by name, beside the node's python3 and the real program behind it: to start one would cost every move more
# than it is worth. The client that is started there finds out whether it works.
_ASK = """\
python=$(command -v python3) || exit 0
for program in "$python" "$(readlink -f "$python" 2>/dev/null)"; do
  base=${program%/bin/*}
  for place in "$base"/lib/python3*/*-packages/libtorrent* "$base"/local/lib/python3*/*-packages/libtorrent*; do
    case $place in *-info) continue ;; esac
    [ -e "$place" ] && { echo libtorrent yes; exit 0; }
  done
done
echo libtorrent no
"""
LIBTORRENT: Probe[bool] = Probe(
    "libtorrent", _ASK, lambda answer: {"libtorrent yes": True, "libtorrent no": False}.get(answer.strip())
)
"""Whether the node's python3 has libtorrent."""


class Torrent:
    """Seed the file from here to a client on the node, and have all nodes that it goes to give each other pieces.

    Our side is libtorrent, the node's is libtorrent or aria2c on a lease. It is private and encrypted, and the nodes
    are told of each other over the login: there is no tracker that others could find.
    """

    name: ClassVar[str] = "torrent"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Probe[Any], ...]] = (TOOLS, PORTS, REACH, CLIENT, LIBTORRENT)
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume="exact", route="swarm", streams=1, ranges=True, setup=20.0, ceiling=100e6
    )
    settings: ClassVar[type] = TorrentSettings

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Refuse where either side has no client."""
        if find_spec("libtorrent") is None:
            return "libtorrent is missing here: pip install libtorrent"
        client = client_for(request, facts)
        return client if client not in {None, "aria2c", "libtorrent"} else None

    async def send(self, job: Job) -> None:
        """Have the missing pieces fetched from the swarm; a repeat continues."""
        from rrmove_plugins.torrent.leech import hosts_of, leech
        from rrmove_plugins.torrent.swarm import joined

        if not job.missing:
            return
        client = client_for(job.request, job.facts) or "aria2c"
        if client not in {"aria2c", "libtorrent"}:
            raise Unusable(client, node=job.request.node.name)
        seen = job.facts.get(CLIENT)
        us = seen.host if seen is not None and job.facts.get(REACH) is not False else None
        async with joined(job, await hosts_of(job), us) as (swarm, member):
            await leech(job, swarm, member, client)


def client_for(request: Request, facts: Facts) -> str | None:
    """Choose what runs on the node; None where nothing is known, and else a reason why there is nothing.

    libtorrent comes first: aria2c lets others have a piece only ten seconds after it has met them.
    """
    asked, tools, there = request.settings.get(TorrentSettings).client, facts.get(TOOLS), facts.get(LIBTORRENT)
    if tools is not None and "python3" not in tools:
        return "the node has no python3, which a client there is watched over by"
    if asked != "aria2c" and there:
        return "libtorrent"
    if asked == "libtorrent":
        return None if there is None else "the node's python3 has no libtorrent, which was asked for"
    if tools is None:
        return None
    return "aria2c" if "aria2c" in tools else "the node has neither aria2c nor a python3 with libtorrent"


__all__ = ["Torrent"]
