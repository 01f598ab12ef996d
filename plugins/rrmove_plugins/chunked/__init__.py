"""chunked: positional writes over several SSH connections; the floor that every node can stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rrmove import API_VERSION, RTT, Capabilities, Job
from rrmove_plugins.chunked.crew import MOST_LANES, Crew

if TYPE_CHECKING:
    from rrmove import Facts, Probe, Request


class Chunked:
    """Send missing chunks in small acknowledged frames, over as many connections as pay.

    Each frame is written at its offset and acknowledged; a connection that dies costs what was
    in flight on it, less what its agent still wrote. Needs one SSH port and nothing installed.
    """

    name: ClassVar[str] = "chunked"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Probe[Any], ...]] = (RTT,)
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume="exact", route="ssh", streams=MOST_LANES, ranges=True, lanes_only=True
    )

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Never refuse: this is the floor."""
        del request, facts
        return None

    async def send(self, job: Job) -> None:
        """Put the missing ranges into the part file, checked; a repeat continues."""
        if not job.missing:
            return
        with job.request.source.opened() as fd:
            await Crew(job, fd).run()
