"""The lane over a real channel: what it carries, how it dies, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rrmove.errors import Fatal, RRMoveError, Transient, Unusable
from rrmove.session import FilePart, Lane, Session
from rrmove.ssh import calls
from rrmove.ssh.boot import agent_text
from rrmove.ssh.failures import HostKeyError, NoLogin, NoPython, StaleError
from rrmove.ssh.lane import AgentLane
from tests.ssh.local import LocalSession, alive, lane_threads, signal_group, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = set(threading.enumerate())
    fds = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert until(lambda: not [thread for thread in lane_threads() if thread not in before])
    assert until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= fds)


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[LocalSession]:
    async with LocalSession(tmp_path) as opened:
        yield opened
    for channel in opened.channels:
        assert channel._process.returncode is not None
        assert not alive(channel._process.pid)


async def part_of(lane: Lane, size: int) -> str:
    found = (await lane.call("locate", destination="file", name="file", key="k")).fields
    await lane.call("open", part=found["part"], journal=found["journal"], note={}, size=size, need=0)
    return str(found["part"])


def file_of(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# What it carries


async def test_it_is_a_lane(session: LocalSession) -> None:
    lane = await session.open_lane()
    assert isinstance(lane, Lane)
    assert isinstance(session, Session)
    assert lane.alive
    assert not lane.up
    await lane.ready()
    assert lane.up
    assert lane.age > 0
    assert lane.carried >= len(agent_text())
    assert lane.quiet <= lane.age
    assert not session.lost


async def test_calls_need_not_wait_for_the_login(session: LocalSession) -> None:
    lane = await session.open_lane()
    assert not lane.up
    replies = await asyncio.gather(*(lane.call("hello", b"%d" % number) for number in range(20)))
    assert [reply.body for reply in replies] == [b"%d" % number for number in range(20)]


async def test_three_hundred_calls_at_once_get_their_own_answers(session: LocalSession, tmp_path: Path) -> None:
    lane = await session.control()
    await lane.ready()
    source = file_of(tmp_path / "source", os.urandom(300 * 4 * KIB))
    part = await part_of(lane, 300 * 4 * KIB)
    content = source.read_bytes()
    with source.open("rb") as file:

        async def one(number: int) -> None:
            at = number * 4 * KIB
            match number % 4:
                case 0:
                    words = b"%d " % number * (number * 50)
                    assert (await lane.call("hello", words)).body == words
                case 1:
                    with pytest.raises(Unusable, match=f"op-{number}'"):
                        await lane.call(f"op-{number}")
                case 2:
                    with pytest.raises(StaleError, match="gone"):
                        await lane.call("put", b"x", part=f"{part}-{number}.rrmove-part", at=0)
            await lane.call("put", FilePart(file.fileno(), at, 4 * KIB), part=part, at=at)
            reply = await lane.call("hash", path=part, spans=[[at, 4 * KIB]])
            assert reply.fields["digests"] == [hashlib.sha256(content[at : at + 4 * KIB]).hexdigest()]

        await asyncio.gather(*map(one, range(300)))
    assert Path(part).read_bytes() == content
    assert not lane._open_calls
    assert lane.alive


@pytest.mark.parametrize("length", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 3 * MIB + 5])
@pytest.mark.parametrize("offset", [0, 12_345])
async def test_a_file_part_is_these_very_bytes(session: LocalSession, tmp_path: Path, length: int, offset: int) -> None:
    content = os.urandom(offset + length + 100)
    lane = await session.control()
    part = await part_of(lane, length + 10)
    with file_of(tmp_path / "source", content).open("rb") as file:
        file.seek(77)
        await lane.call("put", FilePart(file.fileno(), offset, length), part=part, at=10)
        assert file.tell() == 77  # several lanes read the same descriptor
    assert Path(part).read_bytes() == bytes(10) + content[offset : offset + length]


@pytest.mark.parametrize("length", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 3 * MIB + 5])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_a_body_is_these_very_bytes(
    session: LocalSession, length: int, kind: type[bytes | bytearray | memoryview]
) -> None:
    content = os.urandom(length)
    lane = await session.control()
    before = lane.carried
    assert (await lane.call("hello", kind(content))).body == content
    assert lane.carried >= before + length


async def test_what_it_carried_is_counted(session: LocalSession, tmp_path: Path) -> None:
    lane = await session.control()
    part = await part_of(lane, MIB)
    before = lane.carried
    with file_of(tmp_path / "source", bytes(MIB)).open("rb") as file:
        await lane.call("put", FilePart(file.fileno(), 0, MIB), part=part, at=0)
    assert MIB < lane.carried - before < MIB + 500


async def test_an_error_is_the_calls_and_not_the_lanes(session: LocalSession) -> None:
    lane = await session.control()
    part, journal = f"{session.home}/.x.rrmove-part", f"{session.home}/.x.rrmove-journal"
    with pytest.raises(Fatal, match="disk is full"):
        await lane.call("open", part=part, journal=journal, note={}, size=0, need=1 << 60)
    with pytest.raises(StaleError):
        await lane.call("trim", part="/nowhere/.x.rrmove-part", size=0)
    assert lane.alive
    assert (await lane.call("hello", b"well")).body == b"well"
    assert not session.lost


async def test_a_call_that_is_given_up_leaves_the_lane_in_step(session: LocalSession, tmp_path: Path) -> None:
    lane = await session.control()
    part = await part_of(lane, MIB)
    with file_of(tmp_path / "source", b"x" * MIB).open("rb") as file:
        tasks = [
            asyncio.create_task(lane.call("put", FilePart(file.fileno(), 0, MIB), part=part, at=0)) for _ in range(9)
        ]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert (await lane.call("hello", b"well")).body == b"well"
    assert [isinstance(end, asyncio.CancelledError) for end in ends] == [number % 2 == 0 for number in range(9)]
    assert not lane._open_calls
    assert Path(part).read_bytes() == b"x" * MIB


# How it dies


async def all_lost(lane: AgentLane, calls_: list[asyncio.Task[object]]) -> list[RRMoveError]:
    ends = await asyncio.wait_for(asyncio.gather(*calls_, return_exceptions=True), 15)
    errors = [end for end in ends if isinstance(end, RRMoveError)]
    assert len(errors) == len(ends)
    assert not lane.alive
    assert not lane.up
    with pytest.raises(RRMoveError):
        await lane.call("hello")
    return errors


def waiting(lane: AgentLane, count: int = 20) -> list[asyncio.Task[object]]:
    return [asyncio.create_task(_sleep(lane)) for _ in range(count)]


async def _sleep(lane: AgentLane) -> object:
    return await lane.call("run", argv=["sleep", "60"], timeout=60)


async def test_killed_in_the_middle_every_open_call_is_transient(session: LocalSession) -> None:
    lane = await session.control()
    await lane.ready()
    tasks = waiting(lane)
    await lane.call("hello")
    signal_group(session.pid, signal.SIGKILL)
    errors = await all_lost(lane, tasks)
    assert {type(error) for error in errors} == {Transient}
    assert session.lost == errors[:1]  # said once
    assert errors[0].node == "local"


async def test_killed_while_a_large_body_is_on_its_way(session: LocalSession, tmp_path: Path) -> None:
    lane = await session.control()
    part = await part_of(lane, 8 * MIB)
    signal_group(session.pid, signal.SIGSTOP)  # nobody reads: the pipe fills, the writing thread hangs in it
    with file_of(tmp_path / "source", bytes(8 * MIB)).open("rb") as file:
        whole = FilePart(file.fileno(), 0, 8 * MIB)
        tasks: list[asyncio.Task[object]] = [
            asyncio.create_task(_put(lane, whole, part)),
            asyncio.create_task(_put(lane, bytes(8 * MIB), part)),
        ]
        await asyncio.sleep(0.1)
        signal_group(session.pid, signal.SIGKILL)
        errors = await all_lost(lane, tasks)
        assert {type(error) for error in errors} == {Transient}
        await lane.close()
        assert not lane_threads()  # none that could read the source any more


async def _put(lane: AgentLane, body: FilePart | bytes, part: str) -> object:
    return await lane.call("put", body, part=part, at=0)


async def test_closed_by_us_every_open_call_is_transient(session: LocalSession) -> None:
    lane = await session.control()
    tasks = waiting(lane, 5)
    await asyncio.sleep(0)
    await asyncio.gather(lane.close(), lane.close())
    await lane.close()
    assert {type(error) for error in await all_lost(lane, tasks)} == {Transient}
    assert not lane_threads()
    assert not alive(session.pid)


async def test_closed_before_it_was_up(session: LocalSession) -> None:
    lane = await session.open_lane()
    await lane.close()
    with pytest.raises(Transient, match="closed by us"):
        await lane.ready()
    assert not lane_threads()


async def test_closed_while_a_stopped_node_does_not_read(session: LocalSession, tmp_path: Path) -> None:
    lane = await session.control()
    part = await part_of(lane, 8 * MIB)
    signal_group(session.pid, signal.SIGSTOP)
    task: asyncio.Task[object] = asyncio.create_task(_put(lane, bytes(8 * MIB), part))
    await asyncio.sleep(0.1)
    await asyncio.wait_for(lane.close(), 10)
    await all_lost(lane, [task])
    assert not alive(session.pid)
    del tmp_path


async def test_a_node_that_falls_silent_is_given_up(session: LocalSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PATIENCE", 0.3)
    lane = await session.control()
    await lane.ready()
    signal_group(session.pid, signal.SIGSTOP)
    tasks = waiting(lane, 3)
    errors = await all_lost(lane, tasks)
    assert {type(error) for error in errors} == {Transient}
    assert "fell silent" in errors[0].what


async def test_one_that_owes_nothing_may_be_silent(session: LocalSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PATIENCE", 0.3)
    lane = await session.control()
    await lane.ready()
    await asyncio.sleep(1.2)  # longer than patience, and the watch has looked once at least
    assert lane.quiet > 0.3
    assert (await lane.call("hello", b"well")).body == b"well"
    assert lane.alive


async def test_one_that_is_busy_for_long_says_so(session: LocalSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PATIENCE", 2.2)  # two beats
    lane = await session.control()
    await lane.call("run", argv=["sleep", "2.9"], timeout=10)
    assert lane.alive


async def test_a_login_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "LOGIN_PATIENCE", 0.5)
    async with LocalSession(tmp_path, prelude="sleep 60; ") as session:
        lane = await session.open_lane()
        with pytest.raises(NoLogin, match="no login within"):
            await lane.ready()
        assert not lane.alive


async def test_a_source_that_is_shorter_is_fatal(session: LocalSession, tmp_path: Path) -> None:
    lane = await session.control()
    part = await part_of(lane, 4 * MIB)
    with file_of(tmp_path / "source", b"y" * MIB).open("rb") as file:
        with pytest.raises(Fatal, match="shorter"):
            await lane.call("put", FilePart(file.fileno(), MIB // 2, MIB), part=part, at=0)
        assert not lane.alive  # the frame can never be completed
    written = Path(part).read_bytes()
    assert len(written) == 4 * MIB
    # Nothing but bytes of the source, or still nothing.
    assert written.strip(b"\0") == written[: len(written.rstrip(b"\0"))] == b"y" * len(written.rstrip(b"\0"))


# What else may answer


@pytest.mark.parametrize(
    "noise",
    [
        "echo Welcome to gpu-3; ",
        "printf 'no line feed'; ",
        "printf '\\0RRMOVE-READ \\0RRMOVE\\n'; ",
        "head -c 60000 /dev/zero; ",
        "echo on stderr >&2; ",
        "printf '\\0\\0\\0'; ",
    ],
)
async def test_what_start_up_files_print_is_passed_over(tmp_path: Path, noise: str) -> None:
    async with LocalSession(tmp_path, prelude=noise) as session:
        lane = await session.control()
        assert (await lane.call("hello", bytes(range(256)))).fields["clean"] is True


@pytest.mark.parametrize("noise", ["head -c 70000 /dev/zero; ", "yes | head -c 100000; "])
async def test_too_much_of_it_is_no_agent(tmp_path: Path, noise: str) -> None:
    async with LocalSession(tmp_path, prelude=noise) as session:
        lane = await session.open_lane()
        with pytest.raises(Transient, match="something else than the agent answers") as caught:
            await lane.ready()
        assert "bashrc" in (caught.value.remedy or "")


async def test_a_node_without_python(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("sh", "env"):
        (bare / tool).symlink_to(f"/bin/{tool}" if Path(f"/bin/{tool}").exists() else f"/usr/bin/{tool}")
    async with LocalSession(tmp_path, path=str(bare)) as session:
        lane = await session.open_lane()
        with pytest.raises(NoPython, match="no python3"):
            await lane.ready()
        assert [type(error) for error in session.lost] == [NoPython]
        with pytest.raises(NoPython):
            await lane.call("hello")


async def test_a_python_that_does_not_work(tmp_path: Path) -> None:
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "python3").write_text("#!/bin/sh\necho cannot find libpython >&2\nexit 127\n")
    (broken / "python3").chmod(0o755)
    async with LocalSession(tmp_path, path=f"{broken}:/usr/bin:/bin") as session:
        with pytest.raises(NoPython):
            await (await session.open_lane()).ready()


@pytest.mark.parametrize(
    ("words", "status", "kind"),
    [
        ("Host key verification failed.", 255, HostKeyError),
        ("u@h: Permission denied (publickey).", 255, Fatal),
        ("ssh: connect to host h port 22: Connection refused", 255, NoLogin),
        ("kex_exchange_identification: Connection closed by remote host", 255, NoLogin),
        ("", 1, Transient),
    ],
)
async def test_a_login_that_fails_says_why(tmp_path: Path, words: str, status: int, kind: type[RRMoveError]) -> None:
    async with LocalSession(tmp_path, prelude=f"echo '{words}' >&2; exit {status}; ") as session:
        lane = await session.open_lane()
        with pytest.raises(kind) as caught:
            await lane.call("hello")
        assert type(caught.value) is kind
        assert caught.value.node == "local"


async def test_answers_that_are_mangled_are_the_end(tmp_path: Path) -> None:
    prelude = "printf '\\0RRMOVE-READY\\nHTTP/1.1 400 Bad Request'; cat >/dev/null; "
    async with LocalSession(tmp_path, prelude=prelude) as session:
        lane = await session.open_lane()
        with pytest.raises(Transient, match="mangled"):
            await lane.call("hello")
        assert not lane.alive


async def test_an_answer_that_is_cut_off_is_no_answer(tmp_path: Path) -> None:
    head = json.dumps({"id": 1})
    frame = f"RRM1\\0\\0\\0\\{len(head):03o}\\0\\0\\0\\012{head}half".replace('"', '\\"')
    async with LocalSession(tmp_path, prelude=f"printf '\\0RRMOVE-READY\\n{frame}'; exit 0; ") as session:
        lane = await session.open_lane()
        with pytest.raises(Transient):
            await lane.call("hello")


async def test_a_channel_that_cannot_be_opened(tmp_path: Path) -> None:
    session = LocalSession(tmp_path)

    def refuse(command: str) -> object:
        del command
        raise Fatal("cannot run 'ssh'")

    lane = AgentLane(refuse, session.node)  # type: ignore[arg-type]
    with pytest.raises(Fatal, match="cannot run"):
        await lane.call("hello")
    await lane.close()


def test_a_loop_that_ends_first_breaks_nothing(tmp_path: Path) -> None:
    session = LocalSession(tmp_path)

    async def leave() -> AgentLane:
        lane = await session.open_lane()
        await lane.ready()
        return lane

    lane = asyncio.run(leave())
    session.channels[0].kill()
    lane._outbox.put(None)
    lane._join()
    assert not lane_threads()


async def test_many_lanes_come_and_go(session: LocalSession) -> None:
    lanes = [await session.open_lane() for _ in range(8)]
    pids = await asyncio.gather(*(lane.call("hello") for lane in lanes))
    assert len({reply.fields["pid"] for reply in pids}) == 8  # each a process of its own
    begun = time.monotonic()
    await asyncio.gather(*(lane.close() for lane in lanes))
    assert time.monotonic() - begun < 10
    assert not lane_threads()
    # An agent ends when it finds its connection ended, which nobody waits for
    assert until(lambda: not [reply for reply in pids if alive(int(str(reply.fields["pid"])))])
