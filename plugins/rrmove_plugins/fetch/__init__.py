"""fetch: the node fetches a URL itself, with what python3 brings along, or with curl; none of it passes through us."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rrmove import API_VERSION, TOOLS, Capabilities, Job, Lease, Remote, RemotePart
from rrmove.lease import text_of
from rrmove.web import secret_parts, trouble_of, version_parts
from rrmove_plugins.fetch.with_curl import fetch_with_curl

if TYPE_CHECKING:
    from rrmove import Facts, Probe, Request

STREAMS = 4  # connections to the server: what browsers take from one host is six
LEASE = 15.0  # s that the node goes on without a word from us: longer than a connection takes to come back
LOOK = 0.4  # s between two looks at how far it is


class Fetch:
    """Have the node fetch what is missing, in ranges over a few connections where the server can.

    Its program lives on a lease, so a connection to the node that is cut costs nothing.
    """

    name: ClassVar[str] = "fetch"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Probe[Any], ...]] = (TOOLS,)
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume="exact", route="web", streams=STREAMS, ranges=True, setup=18.0, sources=("url",)
    )

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Refuse where the node could not reach the URL just now, or has only curl and would have to start over."""
        source, tools = request.source, facts.get(TOOLS)
        if isinstance(source, Remote) and source.beyond:
            return f"the node cannot fetch it: {source.beyond}"
        if isinstance(source, Remote) and tools is not None and "python3" not in tools and not source.resumable:
            return "the node has no python3, and without ranges and a version curl could not be trusted with it"
        return None

    async def send(self, job: Job) -> None:
        """Let the node fetch the missing ranges; a repeat continues where the server can."""
        source, landing = cast("Remote", job.request.source), cast("RemotePart", job.landing)
        if job.session.floor:
            await fetch_with_curl(job, source, landing)
            return
        given = {
            **secret_parts(source),
            **version_parts(source),
            "part": landing.part,
            "ledger": landing.ledger,
            "grain": job.manifest.grain,
            "missing": [[item.start, item.stop] for item in job.missing],
            "resumable": source.resumable,
            "streams": STREAMS,
            "rate": job.limiter.rate,
            "sha256": landing.expected,
        }
        duty = text_of("rrmove.ssh", "fetcher.py") + "\nmain(Fetch)\n"
        lease = await Lease.begin(job.session, duty, given, seconds=LEASE)
        try:
            told, pause = 0, 0.05
            while True:
                rate = job.limiter.rate
                seen = json.loads(await lease.ask(b"" if rate is None else b"%d" % max(1, rate)))
                job.progress(max(0, seen["moved"] - told))
                told = max(told, seen["moved"])
                if seen["over"]:
                    break
                await asyncio.sleep(pause)
                pause = min(LOOK, 2 * pause)
        finally:
            await asyncio.shield(lease.end())
        if "trouble" in seen:
            kind, text = seen["trouble"]
            raise trouble_of(kind, text, source, node=job.request.node.name, where="by the node")
