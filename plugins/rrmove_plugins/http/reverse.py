"""The way back: we serve the one file, and the node pulls ranges of it, with python3 or with curl."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from rrmove import (
    CLIENT,
    REACH,
    RTT,
    TOOLS,
    Fatal,
    IntegrityError,
    Range,
    Transient,
    Unusable,
    serve_once,
)
from rrmove_plugins.http.sender import changed
from rrmove_plugins.http.trust import plain_allowed, tls_of

if TYPE_CHECKING:
    from rrmove import Job, Serving

STREAMS = 4  # connections that a puller opens; more are bound by the same two cores
MOST_STREAMS, PER_STREAM = (
    8,
    0.015,
)  # and on long ways, where each is bound by its window, one for so many s of round trip
FIRST_WORD = 0.7  # s, and four round trips, beyond the start within which the first request has to come
SILENCE = 8.0  # s without a byte, after which the puller is given up; it gives up its connections after 5
START = 10.0  # s that a node may take to start a Python
LOOK = 0.25  # s between two looks at the clock
CURL_SPAN, CURL_BLOCK = 32 << 20, 64 << 10  # bytes of one curl, and of dd's blocks: chunks begin at a multiple
CURL_LEAST = 20e3  # bytes a second below which curl is given up

BOOT = (
    "import io,sys,zlib,base64,json;f=io.BufferedReader(io.FileIO(0,closefd=False));"
    "n={'__name__':'pull'};exec(zlib.decompress(base64.b64decode(f.readline())),n);n['main'](json.loads(f.read()))"
)
# The configuration comes over stdin: the token is on no command line.
CURL = 'curl -K - | dd of="$1" bs=65536 seek="$2" conv=notrunc 2>/dev/null'


@functools.cache
def pull_text() -> bytes:
    """Give the puller as one line."""
    return base64.b64encode(zlib.compress(Path(__file__).with_name("pull.py").read_bytes(), 9)) + b"\n"


async def send_reverse(job: Job) -> None:
    """Serve the file and have the node pull what is missing. Raises Unusable where it cannot."""
    node = job.request.node.name
    client = job.facts.get(CLIENT)
    if job.facts.get(REACH) is False:
        raise Unusable("the node cannot reach us", node=node)
    if client is None:
        raise Unusable("it is not known at what address the node sees us", node=node)
    moved = _Moved(job)
    tls = not plain_allowed(client.host, tls_of(job))
    async with serve_once(
        job.request.source.path, tls=tls, limiter=job.limiter, sent=moved.sent, kept=moved.kept
    ) as serving:
        tools = job.facts.get(TOOLS)
        if tools is not None and "python3" not in tools:
            await _curl(job, serving, client.host, moved)
        else:
            await _pull(job, serving, client.host, moved)


class _Moved:
    """What has left, and what the node has dealt with."""

    def __init__(self, job: Job) -> None:
        self._job, self.last = job, time.monotonic()
        self.whole: list[Range] = []

    def sent(self, count: int) -> None:
        self.last = time.monotonic()
        self._job.sent(count)

    def kept(self, start: int, stop: int) -> None:
        self.whole.append(Range(start, stop))
        self._job.progress(stop - start)


async def _pull(job: Job, serving: Serving, host: str, moved: _Moved) -> None:
    node, manifest, endpoint = job.request.node.name, job.manifest, serving.endpoint
    rtt = job.facts.get(RTT) or 0.0
    chunks = list(manifest.chunks_of(job.missing))
    told = {
        "file": job.landing.part,
        "host": host,
        "port": endpoint.port,
        "path": endpoint.path,
        "token": endpoint.token,
        "fingerprint": endpoint.fingerprint,
        "size": manifest.size,
        "streams": max(1, min(len(chunks), MOST_STREAMS, max(STREAMS, round(rtt / PER_STREAM)))),
        # TLS keeps bytes as they are; without it each piece is compared as it comes.
        "pieces": [
            (manifest.chunk(index).start, manifest.chunk(index).stop, "" if endpoint.tls else manifest.digest(index))
            for index in chunks
        ],
    }
    lane = await job.session.control()
    reply = await lane.call(
        "run",
        pull_text() + json.dumps(told).encode("ascii"),
        argv=["python3", "-I", "-S", "-c", BOOT],
        timeout=START,
    )
    if reply.fields.get("status") != 0 or reply.body != b"pulling\n":
        lines = str(reply.fields.get("errors", "")).strip().splitlines() or ["it said nothing"]
        raise Unusable(f"the node cannot pull: {lines[-1][:200]}", node=node, tried="python3 on the node")
    started = moved.last = time.monotonic()
    while not serving.ended.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await serving.ended.wait()
        now = time.monotonic()
        if not serving.asked.is_set() and now - started > FIRST_WORD + 4 * rtt and not serving.ended.is_set():
            raise Unusable("the node does not reach us any more", node=node, tried=f"{host}:{endpoint.port}")
        if now - moved.last > SILENCE:
            raise Transient(f"the node has pulled nothing for {SILENCE:g} s", node=node)
    if serving.trouble is not None:
        if not job.request.source.unchanged():
            raise changed(job)
        raise _meaning(serving.trouble, node)


def _meaning(trouble: str, node: str) -> Fatal | IntegrityError | Unusable:
    """Say what the puller's last words mean."""
    kind, _, rest = trouble.partition(": ")
    if kind == "disk":
        return Fatal(f"the disk is full ({rest})", node=node, remedy="Make room, or choose another destination")
    if kind == "wrong":
        return IntegrityError(
            rest,
            node=node,
            remedy="Look for what alters data on the way from us to the node: a proxy, or faulty memory",
        )
    return Unusable(f"the node could not pull: {trouble}", node=node)


async def _curl(job: Job, serving: Serving, host: str, moved: _Moved) -> None:
    """Have curl fetch run after run, one connection; dd puts each where it belongs."""
    node, endpoint = job.request.node.name, serving.endpoint
    told = [
        f'url = "{endpoint.url(host)}"',
        f'header = "Authorization: Bearer {endpoint.token}"',
        "silent",
        "show-error",
        "fail",
        "connect-timeout = 2",
        f"speed-limit = {CURL_LEAST:.0f}",
        f"speed-time = {SILENCE:.0f}",
    ]
    if endpoint.tls:
        told += ["insecure", f'pinnedpubkey = "sha256//{endpoint.public_key}"']
    for run in job.missing:
        for start in range(run.start, run.stop, CURL_SPAN):
            stop = min(run.stop, start + CURL_SPAN)
            if start % CURL_BLOCK:
                raise Unusable("curl cannot begin in the middle of a block", node=node)
            config = "\n".join([*told, f'range = "{start}-{stop - 1}"', ""])
            rate = min(job.limiter.rate or CURL_LEAST, CURL_LEAST)
            lane = await job.session.control()
            reply = await lane.call(
                "run",
                config.encode("ascii"),
                argv=["sh", "-c", CURL, "sh", job.landing.part, str(start // CURL_BLOCK)],
                timeout=round(START + (stop - start) / rate),
            )
            await asyncio.sleep(0)
            if Range(start, stop) not in moved.whole:
                said = str(reply.fields.get("errors", "")).strip()[:200] or "it ended early"
                kind = Transient if moved.whole else Unusable
                raise kind(f"curl on the node failed: {said}", node=node, tried=endpoint.url(host).rpartition("/")[0])


__all__ = ["send_reverse"]
