"""It waits without awaiting, and nothing else can happen meanwhile."""

import time

from courier import Courier

from rrmove import Job


class Plugin(Courier):
    name = "bad_block"

    async def send(self, job: Job) -> None:
        del job
        time.sleep(600)
