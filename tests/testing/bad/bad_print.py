"""It talks on stdout, and so does a program that it runs."""

import subprocess

from courier import Courier, Manners

from rrmove import Job


class Plugin(Courier):
    name = "bad_print"

    class Loud(Manners):
        pass

    settings = Loud

    async def send(self, job: Job) -> None:
        print("sending")  # noqa: T201
        subprocess.run(["echo", "really sending"], check=True)
        await super().send(job)
