"""It starts a process and forgets about it."""

import subprocess

from courier import Courier, Manners

from rrmove import Job


class Plugin(Courier):
    name = "bad_leak"

    class Leaky(Manners):
        pass

    settings = Leaky

    async def send(self, job: Job) -> None:
        subprocess.Popen(["sleep", "432.1"], start_new_session=True)
        await super().send(job)
