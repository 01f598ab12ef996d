"""Whatever a transport does, the move goes on or ends well: in-process, against an embedded node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

import rrmove
from rrmove import API_VERSION, Capabilities, Facts, FilePart, Job, Request, Transient, Unusable
from rrmove.children import children, command_of
from rrmove.cli import interrupt
from rrmove.containment import run_to_end
from rrmove.discovery import discover
from rrmove.experience import default_path
from rrmove.fitness import accepted_versions, made
from rrmove.guests import load
from rrmove.model import Node, Outcome, SSHSettings
from rrmove.unended import begun, unended
from rrmove.watchdog import Blocked, Watchdog

if TYPE_CHECKING:
    from rrmove.testing import EmbeddedNode

pytestmark = pytest.mark.usefixtures("own_experience")

SIZE = 5_000_001


class Stranger:
    """Ranked before all others; what it does is what the test says."""

    name: ClassVar[str] = "stranger"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Any, ...]] = ()
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume="exact", route="ssh", ranges=True, lanes_only=True, overhead=0.01, setup=0.0
    )

    def refuse(self, request: Request, facts: Facts) -> str | None:
        del request, facts
        return None

    async def send(self, job: Job) -> None:
        raise NotImplementedError


async def put(job: Job, start: int, stop: int, data: bytes | None = None) -> None:
    lane = await job.session.control()
    fd = os.open(job.request.source.path, os.O_RDONLY)
    try:
        body: Any = FilePart(fd, start, stop - start) if data is None else data
        job.sent(stop - start)
        await lane.call("put", body, part=job.landing.part, at=start)
        job.progress(stop - start)
    finally:
        os.close(fd)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def moved(rrmove_node: EmbeddedNode, source: Path) -> Any:
    """Move the source with one stranger before chunked, and look at what is on the disk."""
    node = Node(name="embedded", ssh=SSHSettings(config=rrmove_node.ssh_config))

    def move(plugin: type[Stranger], **wishes: Any) -> Outcome:
        wishes = {"without": ("rsync",), "patience": 1.0, **wishes}
        outcome = rrmove.move_sync(source, node, plugins=(plugin,), **wishes)
        assert (rrmove_node.home / "model.pth").read_bytes() == source.read_bytes()
        assert outcome.ok
        return outcome

    return move


def errors(outcome: Outcome) -> dict[str, str]:
    return {attempt.transport: f"{attempt.failure}: {attempt.error}" for attempt in outcome.attempts if attempt.error}


class TestHangs:
    """A transport that does not come back."""

    def test_one_that_had_sent_something_may_try_again(self, moved: Any) -> None:
        class Slow(Stranger):
            tried = 0

            async def send(self, job: Job) -> None:
                type(self).tried += 1
                if self.tried > 1:
                    raise Unusable("enough")
                await put(job, 0, 1000)
                await asyncio.Event().wait()

        outcome = moved(Slow)
        assert Slow.tried == 2
        assert [attempt.failure for attempt in outcome.attempts] == ["transient", "unusable", None]
        assert "moved nothing for 1 s" in (outcome.attempts[0].error or "")

    def test_one_that_ignores_its_cancellation_writes_nothing_more(
        self, moved: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rrmove.containment.STOPPING", 0.5)
        seen: list[str] = []

        class Stubborn(Stranger):
            async def send(self, job: Job) -> None:
                lane = await job.session.control()
                while True:
                    try:
                        await asyncio.sleep(0.05)
                    except asyncio.CancelledError:
                        seen.append("cancelled")
                        break
                await asyncio.shield(self.go_on(job, lane))

            async def go_on(self, job: Job, lane: Any) -> None:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1.0)
                for what in (
                    lane.call("put", b"x" * 4096, part=job.landing.part, at=0),
                    job.session.control(),
                    job.session.open_lane(),
                ):
                    try:
                        await what
                        seen.append("it could")
                    except rrmove.TransportError:
                        seen.append("it could not")

        outcome = moved(Stubborn, limit_rate=2e6)  # the next one takes longer than its second
        assert "unusable: " in errors(outcome)["stranger"]
        assert seen == ["cancelled", "it could not", "it could not", "it could not"]

    def test_one_that_blocks_is_interrupted_in_its_frame(self, moved: Any) -> None:
        class Blocking(Stranger):
            async def send(self, job: Job) -> None:
                del job
                time.sleep(60)

        begun = time.monotonic()
        assert "Blocked: stranger blocked the event loop for 1 s" in errors(moved(Blocking))["stranger"]
        assert time.monotonic() - begun < 50

    def test_the_watchdog_leaves_a_loop_alone_that_turns(self) -> None:
        async def turning() -> None:
            with Watchdog(0.2, "it"):
                for _ in range(40):
                    await asyncio.sleep(0.02)

        asyncio.run(turning())

    def test_the_watchdog_bites_more_than_once(self) -> None:
        async def blocking() -> int:
            bites = 0
            with Watchdog(0.2, "it"):
                for _ in range(2):
                    try:
                        time.sleep(20)
                    except Blocked:
                        bites += 1
            return bites

        assert asyncio.run(blocking()) == 2

    def test_elsewhere_than_in_the_main_thread_it_does_nothing(self) -> None:
        async def blocking() -> None:
            with Watchdog(0.1, "it"):
                time.sleep(0.5)

        thread = threading.Thread(target=lambda: asyncio.run(blocking()))
        thread.start()
        thread.join(20)
        assert not thread.is_alive()


class TestLies:
    """What a transport says is not believed."""

    def test_nothing_gained_bars_it_and_something_gained_does_not(self, moved: Any) -> None:
        class Half(Stranger):
            async def send(self, job: Job) -> None:
                if job.missing[0].start == 0:
                    await put(job, 0, 2 << 20)  # a chunk, and then it says that it was all

        outcome = moved(Half)
        assert [attempt.failure for attempt in outcome.attempts] == ["transient", "unusable", None]
        assert "returned as if all were there" in (outcome.attempts[0].error or "")

    def test_a_stranger_that_says_it_only_puts_is_read_again(self, moved: Any) -> None:
        class Spoiler(Stranger):
            async def send(self, job: Job) -> None:
                if job.missing[0].start == 0:
                    await put(job, 0, 2 << 20)
                    raise Transient("a chunk is there, and it was verified")
                for span in job.missing:
                    await put(job, span.start, span.stop)
                path = Path(job.landing.part)  # the node is this machine: by a way that is no lane
                with path.open("r+b") as file:
                    file.write(b"spoilt, after it was verified")

        outcome = moved(Spoiler)  # the fixture has compared what is on the disk
        assert outcome.attempts[1].error is not None
        assert "bytes are missing on the node" in outcome.attempts[1].error

    def test_counts_that_are_none(self, moved: Any) -> None:
        class Odd(Stranger):
            async def send(self, job: Job) -> None:
                job.progress("many")  # type: ignore[arg-type]

        assert "unusable: embedded: stranger failed unexpectedly: TypeError" in errors(moved(Odd))["stranger"]


class TestExits:
    """A transport that wants to end the program."""

    @pytest.mark.parametrize("run", [run_to_end, interrupt.run, asyncio.run], ids=["api", "cli", "asyncio"])
    def test_from_its_send(self, run: Any, rrmove_node: EmbeddedNode, source: Path) -> None:
        class Leaver(Stranger):
            async def send(self, job: Job) -> None:
                del job
                sys.exit(0)

        node = Node(name="embedded", ssh=SSHSettings(config=rrmove_node.ssh_config))
        outcome = run(rrmove.move(source, node, plugins=(Leaver,), without=("rsync",)))
        assert outcome.ok
        assert "wanted to end the program (SystemExit 0)" in errors(outcome)["stranger"]
        assert (rrmove_node.home / "model.pth").read_bytes() == source.read_bytes()

    def test_one_of_the_programs_own_still_ends_it(self) -> None:
        async def own() -> None:
            await asyncio.sleep(0)
            sys.exit(7)

        for run in (run_to_end, interrupt.run):
            with pytest.raises(SystemExit) as end:
                run(own())
            assert end.value.code == 7


class TestLeftBehind:
    """Processes that nobody ended."""

    def test_they_are_ended_only_where_nobody_else_starts_any(self, moved: Any) -> None:
        class Leaky(Stranger):
            started: ClassVar[list[Any]] = []

            async def send(self, job: Job) -> None:
                del job
                self.started.append(await asyncio.create_subprocess_exec("sleep", "456.7"))
                raise Unusable("no")

        seen: list[rrmove.Event] = []
        moved(Leaky, alone=True, on_event=seen.append)
        (left,) = [event for event in seen if isinstance(event, rrmove.LeftBehind)]
        assert left.processes == ("sleep 456.7",)

    def test_a_daemon_does_not_escape_by_a_double_fork(self, moved: Any) -> None:
        class Daemon(Stranger):
            async def send(self, job: Job) -> None:
                del job
                words = "(setsid sh -c 'sleep 456.8; true' >/dev/null 2>&1 </dev/null &)"
                await (await asyncio.create_subprocess_exec("sh", "-c", words)).wait()
                raise Unusable("no")

        seen: list[rrmove.Event] = []
        moved(Daemon, alone=True, on_event=seen.append)
        (left,) = [event for event in seen if isinstance(event, rrmove.LeftBehind)]
        assert left.processes
        assert not [words for words in processes().values() if "456.8" in words]

    def test_it_escapes_where_others_may_start_processes(self, moved: Any) -> None:
        class Daemon(Stranger):
            async def send(self, job: Job) -> None:
                del job
                words = "(sleep 456.9 >/dev/null 2>&1 </dev/null &)"
                await (await asyncio.create_subprocess_exec("sh", "-c", words)).wait()
                raise Unusable("no")

        moved(Daemon)
        (pid,) = [pid for pid, words in processes().items() if words == "sleep 456.9"]
        assert pid not in children()
        os.kill(pid, signal.SIGKILL)


def processes() -> dict[int, str]:
    return {int(path.name): command_of(int(path.name)) for path in Path("/proc").glob("[0-9]*")}


class TestEndsTheProgram:
    """What cannot be caught is known at the next start."""

    SCRIPT = """
import os, sys
from tests.test_containment import Stranger
class Ender(Stranger):
    name = "ender"
    async def send(self, job):
        os._exit(7)
"""

    def again(self, where: Path, source: Path, config: Path, *words: str) -> subprocess.CompletedProcess[str]:
        argv: list[str | Path] = [
            sys.executable,
            "-m",
            "rrmove",
            *words,
            source,
            "embedded",
            "--plugin",
            where,
            "-F",
            config,
        ]
        argv += ["-F", config, "--json", "--without", "rsync"]
        root = str(Path(__file__).parents[1])
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": root}
        )

    def test_it_comes_last_at_the_next_start(self, rrmove_node: EmbeddedNode, source: Path, tmp_path: Path) -> None:
        where, config = tmp_path / "ender.py", rrmove_node.ssh_config
        where.write_text(self.SCRIPT)
        assert self.again(where, source, config, "auto").returncode == 7
        assert set(unended()) == {"ender"}
        plan = json.loads(self.again(where, source, config, "plan").stdout.splitlines()[-1])
        assert plan["steps"][-1]["transport"] == "ender"
        assert "last, as rrmove itself ended while it was at work (" in plan["steps"][-1]["reason"]
        done = self.again(where, source, config, "auto")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["transport"] != "ender"
        assert (rrmove_node.home / "model.pth").read_bytes() == source.read_bytes()

    def test_a_mark_counts_once_its_program_has_ended_and_until_another_attempt_ends(self) -> None:
        with begun("one/two"):
            assert not unended()  # it is at work
        assert not list(default_path().with_name("at-work").iterdir())
        pid = os.fork()
        if not pid:
            with begun("one/two"):
                os._exit(0)
        os.waitpid(pid, 0)
        assert set(unended()) == {"one/two"}
        with begun("another"):
            pass
        assert set(unended()) == {"one/two"}
        with begun("one/two"):
            pass
        assert not unended()

    @pytest.mark.parametrize("told", ["", "{}", "[]", '{"began": 0, "boot": ""}', "began"])
    def test_what_makes_no_sense_counts_against_nobody(self, told: str) -> None:
        folder = default_path().with_name("at-work")
        folder.mkdir(parents=True)
        (folder / "stranger.12").write_text(told)
        assert unended() == {}


class TestLoading:
    """Foreign code before it is asked anything."""

    def test_a_late_one_is_not_waited_for_twice(self) -> None:
        release = threading.Event()
        works = {"late": release.wait, "quick": lambda: True}
        begun = time.monotonic()
        first = load(works, 0.3)
        assert (first["late"].done, first["quick"].result) == (False, True)
        assert 0.3 <= time.monotonic() - begun < 20
        again = load(works, 60.0)
        assert not again["late"].done
        assert time.monotonic() - begun < 20
        release.set()
        first["late"].thread.join()
        assert load(works, 60.0)["late"].result is True

    def test_what_guests_print_goes_to_stderr_and_what_others_print_does_not(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        both = threading.Barrier(2)

        def other() -> None:
            both.wait(10)
            sys.stdout.write("from the program\n")
            both.wait(10)

        def guest() -> None:
            both.wait(10)
            both.wait(10)
            sys.stdout.write("from the guest\n")

        thread = threading.Thread(target=other)
        thread.start()
        found = load({"guest": guest}, 20.0)["guest"]
        thread.join()
        said = capsys.readouterr()
        assert (said.out, said.err) == ("from the program\n", "from the guest\n")
        assert found.spoke

    @pytest.mark.parametrize(("own", "accepted"), [(1, (1,)), (2, (2, 1)), (5, (5, 4))])
    def test_this_version_and_the_one_before(
        self, own: int, accepted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rrmove.fitness.API_VERSION", own)
        assert accepted_versions() == accepted
        for version in range(own - 3, own + 3):
            plugin = type("Odd", (Stranger,), {"api_version": version})
            transport, problem = made(plugin)
            if version in accepted:
                assert (type(transport), problem) == (plugin, None)
            else:
                spoken = " and ".join(map(str, accepted))
                assert problem == f"its api_version is {version}; this rrmove speaks {spoken}"

    def test_a_single_file(self, tmp_path: Path) -> None:
        path = tmp_path / "single.py"
        path.write_text(Path(__file__).read_text().split("async def put")[0] + "\nStranger.name = 'single'\n")
        registry = discover(extra=[path])
        assert registry.transports["single"].name == "single"
        assert "single" not in registry.own

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("1 /", "cannot be loaded: SyntaxError"),
            ("raise SystemExit(0)", "cannot be loaded: SystemExit: 0"),
            ("x = 1", "has no class with a send"),
            ("class A:\n    name = 'a'\n    async def send(self, job): ...", "is unfit: its api_version is None"),
        ],
    )
    def test_a_single_file_that_is_none_is_an_error(self, text: str, said: str, tmp_path: Path) -> None:
        path = tmp_path / "single.py"
        path.write_text(text)
        with pytest.raises(rrmove.PluginError, match=said):
            discover(extra=[path])
        with pytest.raises(rrmove.UsageError, match="no Python file"):
            discover(extra=[tmp_path / "nothing.py"])

    def test_a_built_in_name_is_not_to_be_had(self) -> None:
        plugin = type("Chunked", (Stranger,), {"name": "chunked"})
        with pytest.raises(rrmove.PluginError, match="'chunked' is that of a built-in transport"):
            discover(extra=[plugin])
