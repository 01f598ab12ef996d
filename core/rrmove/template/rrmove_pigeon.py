"""A transport for rrmove: pigeon."""

from rrmove import API_VERSION, Capabilities, Facts, Fatal, FilePart, Job, Request


class Pigeon:
    """Send what is missing over one connection. Put your own mechanism into `send`."""

    name, api_version, needs = "pigeon", API_VERSION, ()
    capabilities = Capabilities(resume="exact", route="ssh", ranges=True)

    def refuse(self, request: Request, facts: Facts) -> str | None:
        """Give the reason why this cannot serve, or None; a fact that is None is unknown, and no reason."""
        return None

    async def send(self, job: Job) -> None:
        """Fill the missing ranges of the part file; to return means that all bytes are there."""
        lane = await job.session.control()
        try:
            with job.request.source.path.open("rb") as file:
                for span in job.missing:
                    for at in range(span.start, span.stop, 1 << 20):
                        piece = FilePart(file.fileno(), at, min(1 << 20, span.stop - at))
                        await job.limiter.take(piece.length)
                        job.sent(piece.length)
                        await lane.call("put", piece, part=job.landing.part, at=at)
                        job.progress(piece.length)
        except OSError as error:
            raise Fatal(f"cannot read the source: {error}") from error
