"""http: past SSH, into the node's data port or, the other way, pulled by the node from a port of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rrmove import API_VERSION, CLIENT, PLACES, PORTS, REACH, RTT, TOOLS, Capabilities, Unusable
from rrmove_plugins.http.trust import HttpSettings

if TYPE_CHECKING:
    from rrmove import Facts, Job, Probe, Request
    from rrmove_plugins.http.knocking import WayBack

LOGIN, START, TLS = 12, 1, 2  # round trips: the login, starting a receiver over it, TLS


class Http:
    """Send missing chunks by PUT over several connections, or have the node fetch them, whichever way is open.

    In this order: to the data server that runs on the node's data port (`rrmove serve`); to a receiver started there
    for this one part file, where the port is open and nothing listens; or from a server of ours, for this one file,
    which the node reaches. TLS with a pinned certificate is the rule, see trust.py.
    """

    name: ClassVar[str] = "http"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Probe[Any], ...]] = (PORTS, PLACES, REACH, CLIENT, TOOLS, RTT)
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume="exact", route="direct", fallback="reverse", streams=8, ranges=True, setup=LOGIN + START + TLS
    )
    settings: ClassVar[type] = HttpSettings

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Refuse where the node has nothing to receive or to fetch with."""
        del request
        tools = facts.get(TOOLS)
        if tools is None or "python3" in tools:
            return None
        if "curl" not in tools:
            return "the node has neither python3 nor curl"
        if facts.get(REACH) is False:
            return "without python3 the node would have to fetch it with curl, and it cannot reach us"
        return None

    async def send(self, job: Job) -> None:
        """Put the missing ranges into the part file, the first way that leads there; a repeat continues."""
        from rrmove_plugins.http.direct import Shut, send_direct
        from rrmove_plugins.http.knocking import WayBack

        if not job.missing:
            return
        tools = job.facts.get(TOOLS)
        shut = Unusable("a receiver would need python3 there", node=job.request.node.name)
        offer = job.request.offer
        if taken := offer is not None and offer.listens:
            shut = Unusable("the data port is where others pull the file from", node=job.request.node.name)
        back = WayBack(job)
        try:
            if not taken and (tools is None or "python3" in tools):
                try:
                    await send_direct(job, back.begin)
                except Shut as error:
                    shut = error
                else:
                    return
            await _send_back(job, back, shut)
        finally:
            await back.end()


async def _send_back(job: Job, back: WayBack, shut: Unusable) -> None:
    """Have the node pull, if it reaches us. Raises Unusable with what was the matter with the direct way, too."""
    from rrmove_plugins.http.reverse import send_reverse

    try:
        if job.facts.get(REACH) is not False:
            await back.leads()
        await send_reverse(job)
    except Unusable as error:
        raise Unusable(f"{shut.what}; and {error.what}", node=error.node, tried=error.tried) from shut


__all__ = ["Http"]
