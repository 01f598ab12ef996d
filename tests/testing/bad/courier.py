"""What the bad plugins are made of: a good transport, ranked before all others by what it claims of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rrmove import API_VERSION, Capabilities, Facts, Fatal, FilePart, Job, Request, Unusable


@dataclass(frozen=True)
class Manners:
    give_up: bool = False


class Courier:
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Any, ...]] = ()
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume="exact", route="ssh", ranges=True, overhead=0.01, setup=0.0
    )

    def refuse(self, request: Request, facts: Facts) -> str | None:
        del request, facts
        return None

    async def send(self, job: Job) -> None:
        settings: Any = getattr(self, "settings", None)
        if settings is not None and job.request.settings.get(settings).give_up:
            raise Unusable("it was told to give up")
        lane = await job.session.control()
        try:
            file = Path(job.request.source.path).open("rb")  # noqa: SIM115
        except OSError as error:
            raise Fatal(str(error)) from error
        with file:
            for span in job.missing:
                for at in range(span.start, span.stop, 500_000):
                    piece = FilePart(file.fileno(), at, min(500_000, span.stop - at))
                    await job.limiter.take(piece.length)
                    job.sent(piece.length)
                    await lane.call("put", piece, part=job.landing.part, at=at)
                    job.progress(piece.length)
