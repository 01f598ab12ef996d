"""It returns without having filled."""

from courier import Courier

from rrmove import Job


class Plugin(Courier):
    name = "bad_lie"

    async def send(self, job: Job) -> None:
        job.progress(sum(span.length for span in job.missing))
