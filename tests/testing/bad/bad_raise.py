"""Something else than a TransportError escapes."""

from courier import Courier

from rrmove import Job


class Plugin(Courier):
    name = "bad_raise"

    async def send(self, job: Job) -> None:
        raise ZeroDivisionError(f"no way to {job.request.node.name}")
