"""Fetching with the node's curl, where there is no python3: range after range, over one connection each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rrmove import Range, Transient
from rrmove.curl import curl
from rrmove.ssh import fetcher
from rrmove.web import secret_parts, trouble_of, version_parts

if TYPE_CHECKING:
    from rrmove import Job, Remote, RemotePart

SPAN = 16 << 20  # bytes of one curl: what is lost where the connection to the node is cut
FRUITLESS = 3  # failures in a row before the policy has to decide


async def fetch_with_curl(job: Job, source: Remote, landing: RemotePart) -> None:
    """Have curl fetch the missing ranges; each is adopted once its answer was of the version that we want."""
    given = {**secret_parts(source), **version_parts(source)}
    step = max(1, SPAN // job.manifest.grain) * job.manifest.grain
    spans = [Range(at, min(item.stop, at + step)) for item in job.missing for at in range(item.start, item.stop, step)]
    for span in spans:
        fruitless = 0
        given["rate"] = job.limiter.rate and max(1.0, job.limiter.rate)
        while (error := await _failed(job, source, landing, given, span)) is not None:
            fruitless += 1
            if fruitless >= FRUITLESS:
                raise error
            await asyncio.sleep(0.25 * 2**fruitless)
        job.progress(span.length)


async def _failed(
    job: Job, source: Remote, landing: RemotePart, given: dict[str, object], span: Range
) -> Transient | None:
    """Fetch one span; gives why that failed where it may pass. Raises all else."""
    try:
        found = await curl(job.session, given, span.start, span.stop, landing.part)
        fetcher.same(given, found)
        if not found["ranges"] or found["start"] != span.start:
            raise fetcher.Trouble("norange", "the server no longer gives parts of the file")  # noqa: TRY301
    except fetcher.Trouble as trouble:
        error = trouble_of(trouble.kind, trouble.text, source, node=job.request.node.name, where="by the node's curl")
        if isinstance(error, Transient):
            return error
        raise error from trouble
    await landing.adopt([span])
    return None
