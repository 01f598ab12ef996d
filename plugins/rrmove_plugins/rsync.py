"""rsync, writing straight into the part file; what it leaves is continued by others, and the reverse."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from rrmove import (
    API_VERSION,
    CLEAN,
    TOOLS,
    Capabilities,
    Ended,
    Fatal,
    Job,
    Transient,
    TransportError,
    Unusable,
    run_program,
)

if TYPE_CHECKING:
    from rrmove import Facts, Probe, Request

STALL = 20  # s without a byte before the connection counts as dead, as `rsync --timeout` understands it

# What rsync's exit status means to us; the texts are in rsync(1), EXIT VALUES.
_MEANING: dict[int, type[TransportError]] = {
    1: Unusable,
    2: Unusable,
    3: Fatal,
    4: Unusable,
    5: Unusable,
    11: Fatal,
    13: Unusable,
    14: Unusable,
    22: Unusable,
    124: Unusable,
    126: Unusable,
    127: Unusable,
}
_FATAL = ("No space left", "Disk quota", "Permission denied (publickey")
_SENT = re.compile(r"^Total bytes sent: ([\d,]+)", re.MULTILINE)


class Rsync:
    """Run the local rsync against the node's; one connection, and exact only while it appends.

    Where what is missing is one run at the end, the part file is cut there and rsync appends: it
    goes on at the byte. Otherwise it has to compare the whole file by checksums.
    """

    name: ClassVar[str] = "rsync"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Probe[Any], ...]] = (CLEAN, TOOLS)
    capabilities: ClassVar[Capabilities] = Capabilities(resume="rescan", route="ssh", setup=14.0)

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Refuse where either side is known to lack rsync, or there is no `ssh` program to run it over."""
        del request
        if shutil.which("rsync") is None:
            return "there is no rsync on this machine"
        if shutil.which("ssh") is None:
            return "rsync needs the ssh program, and this machine has none"
        if facts.get(CLEAN) is False:
            return "the connection alters bytes, which rsync's protocol does not survive"
        tools = facts.get(TOOLS)
        if tools is not None and "rsync" not in tools:
            return "the node has no rsync"
        return None

    async def send(self, job: Job) -> None:
        """Let rsync fill the part file; a repeat continues."""
        ssh = job.session.ssh_command()
        if ssh is None:
            raise Unusable("rsync needs the ssh program", node=job.request.node.name)
        start = await self._append_from(job)
        # The part has the source's size, and may have its time: rsync must not take that for sameness.
        mode = ["--append"] if start is not None else ["--inplace", "--no-whole-file", "--ignore-times"]
        if start == 0:
            mode = ["--inplace", "--whole-file"]
        argv = [
            "rsync",
            *mode,
            "--partial",
            "--protect-args",
            "--no-implied-dirs",
            f"--timeout={STALL}",
            "--info=stats2",
            "--no-human-readable",
            "--rsh",
            shlex.join(ssh),
        ]
        if job.limiter.ceiling is not None:  # what others leave of it, `run_program()` sees to
            argv.append(f"--bwlimit={max(1, round(job.limiter.ceiling / 1024))}")
        # rsync wants HOST:PATH; a source name with a colon in it would be taken for a host.
        source = os.path.join(os.getcwdb(), os.fsencode(job.request.source.path))  # noqa: PTH109, PTH118  names need not be text
        part = os.fsencode(job.landing.part)
        where = job.session.ssh_destination()
        host = f"[{where}]" if ":" in where else where
        await self._run(job, [*map(os.fsencode, argv), b"--", source, host.encode() + b":" + part])

    async def _append_from(self, job: Job) -> int | None:
        """Where only the tail is missing, cut the part there and say where; None where it has holes."""
        if not job.missing:
            return None
        first, last = job.missing[0], job.missing[-1]
        if len(job.missing) > 1 or last.stop != job.manifest.size:
            return None
        await job.landing.trim(first.start)
        return first.start

    async def _run(self, job: Job, argv: list[bytes]) -> None:
        landed = 0

        def progress(count: int) -> None:
            nonlocal landed
            landed += count
            job.progress(count)

        ended = await run_program(replace(job, progress=progress), argv)
        total = _SENT.search(ended.said)
        # One that was cut off says nothing; what has landed was sent.
        job.sent(int(total[1].replace(",", "")) if total is not None else landed)
        if ended.status:
            raise _failure(job, ended)


def _failure(job: Job, ended: Ended) -> TransportError:
    """Say what rsync's end means, by its status and by what it said."""
    status, words = ended.status, ended.words
    kind = _MEANING.get(status, Transient)
    if any(word in words for word in _FATAL):
        kind = Fatal
    elif "command not found" in words or ("not found" in words and status in {12, 127}):
        kind = Unusable
    what = f"rsync ended with status {status}: {ended.last_words}"
    return kind(what, node=job.request.node.name, tried="rsync over ssh")
