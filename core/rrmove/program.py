"""run_program(): a program that fills the part file for a transport; it does not outlive the move, or us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmove.errors import TransportError, Unusable

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from rrmove.transport import Job

LOOK = 0.3  # s between two looks at what the node has on its disk
GRACE = 3.0  # s that a program gets to end by itself before it is killed

# The program and whatever it starts must not outlive us, even when we are killed without a word: then our end
# of the pipe closes, and the shell that waits there ends its whole process group.
# What it reads there are signals for the program alone: a shell that was stopped could end nobody, and an ssh that was
# would let its connection die.
GUARD = """exec 3<&0; "$@" </dev/null 3<&- & child=$!
{ while read -r word <&3; do kill "-$word" "$child"; done; kill -CONT "$child"; kill -TERM 0; } >&- 2>&- & wait "$child"
"""
PACE = 0.05  # s between two looks at what a program under a limit has written
AHEAD = 0.25  # s worth of the limit that it may have saved up, as programs write in bursts of a tenth of a second


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: its exit status, and what it wrote to stdout and stderr."""

    status: int
    said: str
    words: str

    @property
    def last_words(self) -> str:
        """The end of what it complained about, on one line, for an error message."""
        lines = [line.strip() for line in self.words.splitlines() if line.strip()]
        return "; ".join(lines[-4:])[-400:]


async def run_program(
    job: Job,
    argv: Sequence[str | bytes],
    *,
    pass_fds: Sequence[int] = (),
    environ: Mapping[str, str] | None = None,
) -> Ended:
    """Run a program that writes to the job's part file, and wait for its end.

    What the node has on its disk is reported as progress meanwhile: what programs print is only
    what they have sent. Descriptor 3 is taken; stdin is empty, the locale C.UTF-8; `environ` comes
    on top. Where a rate limit holds, a program that is ahead of it, by what it has written here or
    what the node has, is stopped until it no longer is: so it may be told `job.limiter.ceiling`, and
    takes what others leave. One that is not installed ends with status 127, as in a shell; Unusable where not even
    that can be started. When it is cancelled, or we are killed, the program ends with everything
    that it started.
    """
    try:
        process = await _begun(
            asyncio.create_subprocess_exec(
                *("sh", "-c", GUARD, "sh"),
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C.UTF-8", **(environ or {})},
                start_new_session=True,
                pass_fds=pass_fds,
            )
        )
    except OSError as error:
        raise Unusable(f"cannot run {os.fsdecode(argv[0])!r}: {error.strerror}", node=job.request.node.name) from error
    assert process.stdout is not None
    assert process.stderr is not None
    landed = [0]
    watching = [asyncio.create_task(_watch(job, landed))]
    if job.limiter.rate is not None:
        watching.append(asyncio.create_task(_pace(job, process, landed)))
    try:
        said, words = await asyncio.gather(process.stdout.read(), process.stderr.read())
        status = await process.wait()
    finally:
        for each in watching:
            each.cancel()
        await _end(process)
        await asyncio.gather(*watching, return_exceptions=True)
    return Ended(status, said.decode("utf-8", "replace"), words.decode("utf-8", "replace"))


async def _begun(creating: Coroutine[Any, Any, asyncio.subprocess.Process]) -> asyncio.subprocess.Process:
    """Await the start of a program; where we are cancelled meanwhile, it is ended first.

    asyncio itself would kill the guard and wait for the end of pipes that the rest still has.
    """
    starting = asyncio.ensure_future(creating)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            await _end(await starting)
        raise


async def _watch(job: Job, landed: list[int]) -> None:
    with contextlib.suppress(TransportError):
        before = told = await job.landing.held()
        while True:
            await asyncio.sleep(LOOK)
            held = await job.landing.held()
            if held > told:
                landed[0] += held - told
                job.progress(min(held, before + sum(item.length for item in job.missing)) - told)
                told = held


async def _pace(job: Job, process: asyncio.subprocess.Process, landed: Sequence[int]) -> None:
    """Stop a program while it is ahead of what it may use, and let it go on when it no longer is."""
    loop, pipe = asyncio.get_running_loop(), process.stdin
    assert pipe is not None
    pid, written, seen, then, saved, stopped = None, 0, 0, loop.time(), 0.0, False
    with contextlib.suppress(OSError):  # it has ended
        while (rate := job.limiter.rate) is not None:
            pid = pid or _program(process.pid)
            written = max(written, _written(pid) if pid else 0)
            moved, now = max(written, landed[0]), loop.time()
            saved = min(rate * AHEAD, saved + rate * (now - then)) - (moved - seen)
            then, seen = now, moved
            if stopped != (saved < 0):
                stopped = saved < 0
                pipe.write(b"STOP\n" if stopped else b"CONT\n")
                await pipe.drain()
            await asyncio.sleep(PACE)


def _program(guard: int) -> int | None:
    """Find the program among the children of its guard: the first one."""
    try:
        return int(Path(f"/proc/{guard}/task/{guard}/children").read_text(encoding="ascii").split()[0])
    except (OSError, IndexError):
        return None


def _written(pid: int) -> int:
    """Ask how many bytes a program has written; 0 where nobody can say."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("wchar:")), 0)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a program and what it started; a repeat does nothing."""
    for name in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, name)
                os.killpg(process.pid, signal.SIGCONT)  # what is stopped could not end
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), GRACE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
