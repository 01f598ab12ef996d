"""aria2: the node's aria2c pulls the file from a URL, from mirrors, or from us, over many connections at once."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import time
import urllib.parse
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rrmove import (
    API_VERSION,
    CLIENT,
    REACH,
    RTT,
    TOOLS,
    Capabilities,
    Lease,
    LeaseLost,
    Range,
    Remote,
    TransportError,
    Unusable,
    merged,
    serve_once,
)
from rrmove.aria2c.control import control_file, ranges_there
from rrmove.lease import text_of
from rrmove.model import shown_url
from rrmove.web import look, trouble_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from rrmove import Facts, Job, Probe, RemotePart, Request
    from rrmove_plugins.aria2.daemon import Daemon

STREAMS = 8  # connections; measured 837 MB/s with as many from nginx on loopback
PER_SERVER = 4  # of them to one, so that several are used
LEASE = 3.5  # s without a word from us after which aria2c is ended: nothing of ours is left after 5
FIRST_BYTE = 5.0  # s in which aria2c has to come for a file that we serve; a busy node takes one or two
LOOK = 0.3  # s between two looks at how far it is

# Without preallocation and cache, so that what is on the disk is what has come; aria2c's own tries
# end soon, as the next ones are ours to decide.
OPTIONS = {
    "allow-overwrite": "false",
    "auto-file-renaming": "false",
    "auto-save-interval": "1",
    "check-certificate": "true",
    "connect-timeout": "8",
    "continue": "true",
    "disable-ipv6": "false",
    "disk-cache": "0",
    "enable-dht": "false",
    "enable-dht6": "false",
    "file-allocation": "none",
    "follow-metalink": "false",
    "follow-torrent": "false",
    "http-accept-gzip": "false",
    "max-connection-per-server": str(PER_SERVER),
    "max-tries": "2",
    "no-netrc": "true",
    "quiet": "true",
    "remote-time": "false",
    "retry-wait": "1",
    "split": str(STREAMS),
    "timeout": "15",
    "user-agent": "rrmove",
}


# Measured with both ends on the same two cores: 1 GiB from us takes 3.8 s, over SSH 3.2 s. A node that is nearer than
# a millisecond most likely shares our cores; farther away the line bounds before TLS does.
NEAR, TLS_NEAR = 0.001, 300e6  # s of round trip, bytes a second


class Aria2:
    """Have aria2c on the node fetch what is missing: it is told by a control file what is there.

    Everything goes over the login: it opens no port but on the node's loopback, and ends when we do.
    """

    name: ClassVar[str] = "aria2"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Probe[Any], ...]] = (TOOLS, REACH, CLIENT, RTT)
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume="exact", route="web", streams=STREAMS, ranges=True, setup=20.0, sources=("file", "url")
    )

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Refuse where there is no aria2c to run or no python3 to watch over it, or nothing to fetch from."""
        tools = facts.get(TOOLS)
        for tool in ("aria2c", "python3"):
            if tools is not None and tool not in tools:
                return f"the node has no {tool}"
        source = request.source
        if not isinstance(source, Remote):
            return None
        if source.beyond and not request.options.mirrors:
            return f"the node cannot fetch it: {source.beyond}"
        if not source.resumable:
            return "it could not tell two versions of the file apart: the server gives no ranges, or names no version"
        if request.options.mirrors and not (request.options.sha256 or source.digest):
            return "that the mirrors have the same file, only a digest can say: give --sha256"
        return None

    def suited(self, request: Request, facts: Facts) -> Capabilities:
        """Say that from us it comes with TLS, slower where that is what bounds it."""
        rtt = facts.get(RTT)
        if isinstance(request.source, Remote) or rtt is None or rtt >= NEAR:
            return self.capabilities
        return replace(self.capabilities, ceiling=TLS_NEAR)

    async def send(self, job: Job) -> None:
        """Have the missing ranges fetched; a repeat continues."""
        if not job.missing:
            return
        left = [0]

        def sent(count: int) -> None:
            left[0] += count
            job.sent(count)

        async with _sources(job, sent) as (uris, doors):
            await _fetch(job, uris, doors, lambda: bool(left[0]) or not doors)


@contextlib.asynccontextmanager
async def _sources(job: Job, sent: Callable[[int], None]) -> AsyncIterator[tuple[list[str], list[dict[str, object]]]]:
    """Give the URLs that have the file, and the doors to those servers that only the warden talks to.

    We serve a local file ourselves where no mirror is named: who names some wants to spare our line.
    """
    mirrors, source = list(job.request.options.mirrors), job.request.source
    if isinstance(source, Remote):
        yield ([] if source.beyond else [source.url]) + mirrors, []
        return
    if mirrors:
        yield mirrors, []
        return
    client = job.facts.get(CLIENT)
    if job.facts.get(REACH) is False or client is None:
        raise Unusable("the node cannot reach us, and no mirror is named", node=job.request.node.name)
    async with serve_once(source.path, limiter=job.limiter, sent=sent) as serving:
        end = serving.endpoint
        door = {"host": client.host, "port": end.port, "fingerprint": end.fingerprint, "token": end.token}
        yield [end.path], [door]


async def _fetch(job: Job, uris: list[str], doors: list[dict[str, object]], reached: Callable[[], bool]) -> None:
    from rrmove_plugins.aria2.daemon import Daemon

    node, grain = job.request.node.name, job.manifest.grain
    secret = secrets.token_hex(16)
    given = {
        "part": job.landing.part,
        "control": base64.b64encode(control_file(job.manifest.size, grain, job.missing)).decode("ascii"),
        "doors": doors,
        "secret": secret,
        "options": {**OPTIONS, "max-overall-download-limit": _limit(job)},
    }
    duty = text_of("rrmove.aria2c", "warden.py") + "\nmain(Warden)\n"
    tried = ", ".join(shown_url(uri) if "://" in uri else "a server of ours" for uri in uris)
    lease = await Lease.begin(job.session, duty, given, seconds=LEASE)
    try:
        ports = iter(json.loads(await lease.ask(b"doors")))
        places = [_spelled(uri) if "://" in uri else f"http://127.0.0.1:{next(ports)}{uri}" for uri in uris]
        options = {"out": "file", "piece-length": str(grain), "min-split-size": str(grain)}
        whole = _whole_digest(job)
        if whole is not None:
            options["checksum"] = f"sha-256={whole}"
        daemon = Daemon(lease, secret, node, tried)
        try:
            await daemon.add(places, options)
            await _watch(job, daemon, reached)
        except LeaseLost as error:
            raise Unusable("aria2c was ended on the node", node=node, tried=tried) from error
        except TransportError:
            await _keep(job, ranges_there(await lease.ask(b"control")))
            raise
    finally:
        await asyncio.shield(lease.end())
    await _keep(job, job.missing)


def _whole_digest(job: Job) -> str | None:
    """Give the file's SHA-256 where somebody has told it."""
    source, asked = job.request.source, job.request.options.sha256
    return asked or (source.digest if isinstance(source, Remote) else None)


def _spelled(uri: str) -> str:
    """Give a URL with user and password where aria2 looks for them, escaped."""
    parts = urllib.parse.urlsplit(uri)
    path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _limit(job: Job) -> str:
    """Give what may be used now in aria2's words, in three digits: it is told anew whenever that changes."""
    if job.limiter.rate is None:
        return "0"
    rate = max(1, int(job.limiter.rate))
    step = 10 ** max(0, len(str(rate)) - 3)
    return str(rate // step * step)


async def _watch(job: Job, daemon: Daemon, reached: Callable[[], bool]) -> None:
    """Report what aria2c has until it is done. Raises what its error means.

    Where it fetches from a server of ours, it has to have `reached` that soon: most nodes cannot,
    and that a probe has not said so means little.
    """
    told, pause, began, limit = None, 0.05, time.monotonic(), _limit(job)
    while True:
        if _limit(job) != limit:
            limit = _limit(job)
            await daemon.limit(limit)
        status = await daemon.look()
        there = int(status["completedLength"])
        job.progress(max(0, there - (there if told is None else told)))
        told = max(there, told or 0)
        if not reached() and time.monotonic() - began > FIRST_BYTE:
            raise Unusable("the node does not reach us", node=job.request.node.name, tried="a server of ours")
        match status["status"]:
            case "complete":
                return
            case "error" | "removed":
                raise daemon.explained(int(status.get("errorCode", 1)), str(status.get("errorMessage", "")))
        await asyncio.sleep(pause)
        pause = min(LOOK, 2 * pause)


async def _keep(job: Job, there: Sequence[Range]) -> None:
    """Take what aria2c has fetched of a URL for what the server has, if that is the same file still.

    Of a local file nothing has to be told: the survey compares with the manifest.
    """
    source = job.request.source
    if not isinstance(source, Remote) or not there:
        return
    now = await look(job.session, source)
    if (now.size, now.etag, now.modified) != (source.size, source.etag, source.modified):
        raise trouble_of(
            "changed",
            "the file was changed on the server while it was fetched",
            source,
            node=job.request.node.name,
            where="by the node",
        )
    missing = [Range(max(a.start, b.start), min(a.stop, b.stop)) for a in there for b in job.missing]
    await cast("RemotePart", job.landing).adopt(merged(item for item in missing if item.start < item.stop))
