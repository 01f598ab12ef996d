"""It waits for what never comes."""

import asyncio

from courier import Courier

from rrmove import Job


class Plugin(Courier):
    name = "bad_hang"

    async def send(self, job: Job) -> None:
        del job
        await asyncio.Event().wait()
