"""scp: OpenSSH's own copying, by its sftp client where that can append, by scp where it cannot."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shlex
import shutil
import subprocess
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
    total,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rrmove import Facts, Probe, Request

# The sftp protocol by default from 9.0 on; -O, which asks for the old one, from 8.7 on: the release notes.
SFTP_BY_DEFAULT, KNOWS_O = (9, 0), (8, 7)
# A link that has fallen silent is noticed after 20 s, as rsync's --timeout has it; and no debug lines.
OPTIONS = ("-o", "LogLevel=ERROR", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=4")
DESCRIPTORS = 20  # from here on: the shell that guards programs takes low ones for itself

# What they say, and what that means to us: collected from OpenSSH 9.2. sftp's mere "Failure" may be anything.
_MEANING: tuple[tuple[str, type[TransportError]], ...] = (
    (r"No space left|Disk quota|Permission denied|Read-only file system", Fatal),
    (r"command not found|: not found|unknown option|usage:|not a regular file", Unusable),
)


class NoSFTP(Unusable):
    """sshd does not serve sftp, whatever is installed; scp's old protocol may do."""


class SCP:
    """Send over one connection; it goes on at the byte where only the end is missing.

    Neither sftp nor scp can write into the middle of a file. So where the part file has holes, it
    is cut at the first one and continued from there; unless more is verified behind the hole than
    before it: then scp writes over all of it in place, and nothing that is there gets lost.
    """

    name: ClassVar[str] = "scp"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Probe[Any], ...]] = (CLEAN, TOOLS)
    # A login's round trips, and those of sftp's greeting, stat and open.
    capabilities: ClassVar[Capabilities] = Capabilities(resume="exact", route="ssh", setup=16.0)

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Refuse where either side is known to lack what it takes, or the connection alters bytes."""
        del request
        for program in ("ssh", "scp"):
            if shutil.which(program) is None:
                return f"there is no {program} on this machine"
        if facts.get(CLEAN) is False:
            return "the connection alters bytes, which neither sftp nor scp survives"
        tools = facts.get(TOOLS)
        if tools is not None and not {"scp", "sftp-server"} & tools.keys():
            return "the node has neither an sftp server nor scp"
        return None

    async def send(self, job: Job) -> None:
        """Fill the part file; a repeat continues."""
        ssh = job.session.ssh_command()
        if ssh is None:
            raise Unusable("scp needs the ssh program", node=job.request.node.name)
        if not job.missing:
            return
        with job.request.source.opened() as source:
            await _send(job, source, [*OPTIONS, *_options(job, ssh)])


async def _send(job: Job, source: int, options: list[str]) -> None:
    start = _append_from(job)
    try:
        if start is None:
            await _copy(job, source, options, old=not _served(job) or _client() < SFTP_BY_DEFAULT)
        else:
            await job.landing.trim(start)
            await _append(job, source, options, start)
    except NoSFTP:
        await _copy(job, source, options, old=True)


def _served(job: Job) -> bool:
    """Tell whether there is an sftp server on the node, as far as is known."""
    tools = job.facts.get(TOOLS)
    return tools is None or "sftp-server" in tools


def _append_from(job: Job) -> int | None:
    """Say where to cut the part and go on, None where it is to be written over as a whole."""
    first = job.missing[0].start
    behind = job.manifest.size - first - total(job.missing)
    # A batch has one command a line, so that it cannot name a file with a line feed.
    if not _served(job) or shutil.which("sftp") is None or "\n" in job.landing.part:
        return None
    return first if behind <= first else None


async def _append(job: Job, source: int, options: list[str], start: int) -> None:
    """Have sftp append to the part file, which ends at `start`."""
    name = os.fsencode(job.landing.part).replace(b"\\", rb"\\").replace(b'"', rb"\"")
    inner = _lifted(source)
    out, into = os.pipe()
    batch = _lifted(out)
    try:
        os.close(out)
        verb = b"reput" if start else b"put"
        os.write(into, verb + b' /dev/fd/%d "%s"\n' % (inner, name))
        os.close(into)
        argv = ["sftp", *options, *_limit(job), "-b", f"/dev/fd/{batch}", "--", _host(job)]
        await _run(job, argv, (inner, batch), job.manifest.size - start)
    finally:
        os.close(inner)
        os.close(batch)


async def _copy(job: Job, source: int, options: list[str], *, old: bool) -> None:
    """Have scp write the whole file, by its old protocol or by sftp's; neither cuts before it writes."""
    flag = ["-O"] if old and _client() >= KNOWS_O else []
    path = shlex.quote(job.landing.part) if old else job.landing.part  # the old one has a shell at its far end
    where = os.fsencode(f"{_host(job)}:{path}")
    inner = _lifted(source)
    try:
        argv: list[str | bytes] = ["scp", *flag, *options, *_limit(job), "--", f"/dev/fd/{inner}", where]
        await _run(job, argv, (inner,), job.manifest.size)
    finally:
        os.close(inner)


async def _run(job: Job, argv: Sequence[str | bytes], descriptors: tuple[int, ...], size: int) -> None:
    counted = 0

    def progress(count: int) -> None:
        nonlocal counted
        counted += count
        job.sent(count)
        job.progress(count)

    ended = await run_program(replace(job, progress=progress), argv, pass_fds=descriptors)
    if ended.status:
        raise _failure(job, ended, str(argv[0]))
    job.sent(max(0, size - counted))


def _failure(job: Job, ended: Ended, program: str) -> TransportError:
    if "subsystem request failed" in ended.words:
        return NoSFTP("sshd has no sftp subsystem there", node=job.request.node.name)
    kind = next((kind for words, kind in _MEANING if re.search(words, ended.words)), Transient)
    what = f"{program} ended with status {ended.status}: {ended.last_words}"
    return kind(what, node=job.request.node.name, tried=f"{program} over ssh")


def _options(job: Job, ssh: tuple[str, ...]) -> Iterator[str]:
    """Say in scp's and sftp's words what `ssh` is called with."""
    yield from ("-S", shutil.which(ssh[0]) or ssh[0])
    words = iter(ssh[1:])
    for word in words:
        match word:
            case "-T" | "-a" | "-x":
                continue  # they say so themselves
            case "-o" | "-F" | "-i" | "-c":
                yield from (word, next(words))
            case "-p":
                yield from ("-P", next(words))
            case "-l":
                yield from ("-o", f"User={next(words)}")
            case _:
                raise Unusable(f"there is no word for ssh's {word} in scp", node=job.request.node.name)


def _limit(job: Job) -> list[str]:
    rate = job.limiter.ceiling  # what others leave of it, `run_program()` sees to
    return [] if rate is None else ["-l", str(max(1, round(rate * 8 / 1000)))]  # in kbit/s


def _host(job: Job) -> str:
    where = job.session.ssh_destination()
    return f"[{where}]" if ":" in where else where


def _lifted(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, DESCRIPTORS)


@functools.cache
def _client() -> tuple[int, int]:
    """Ask the client for its version; one that does not say it is taken for an old one."""
    said = subprocess.run(["ssh", "-V"], capture_output=True, check=False, text=True, errors="replace").stderr
    found = re.search(r"OpenSSH\D*_(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)
