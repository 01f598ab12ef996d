"""It ends the program, from a task of its own."""

import asyncio
import sys

from courier import Courier

from rrmove import Job


class Plugin(Courier):
    name = "bad_exit"

    async def send(self, job: Job) -> None:
        del job
        await asyncio.create_task(self.leave())

    async def leave(self) -> None:
        sys.exit(0)
