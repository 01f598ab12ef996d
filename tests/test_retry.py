"""Asking the node once more: what is asked again, how often, with which pauses, and what is not."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from rrmove.errors import Fatal, RRMoveError, Transient, Unusable
from rrmove.retry import FIRST_PAUSE, TRIES, ask, persistently
from rrmove.ssh.failures import NoLogin, NoPython, StaleError
from tests.ssh.local import LocalSession, signal_group

if TYPE_CHECKING:
    from pathlib import Path

LOST = Transient("lost")
STALE = StaleError("ESTALE", "gone", node="n", tried="t")
CLOSED = NoLogin("the node closed the connection before the login")
DEAD = NoLogin("the node does not answer")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give the pauses that were made; none of them takes any time."""
    made: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        made.append(seconds)
        await real(0)

    monkeypatch.setattr("rrmove.retry.asyncio.sleep", sleep)
    return made


async def tried(*ends: RRMoveError | str) -> tuple[object, int]:
    """Ask with these ends in this order, the last one for ever; gives the result or the error, and how often."""
    count = 0

    async def once() -> str:
        nonlocal count
        end = ends[min(count, len(ends) - 1)]
        count += 1
        if isinstance(end, RRMoveError):
            raise end
        return end

    try:
        return await persistently(once), count
    except RRMoveError as error:
        return error, count


@pytest.mark.parametrize(
    ("ends", "result", "count"),
    [
        (["good"], "good", 1),
        ([LOST, "good"], "good", 2),
        ([LOST] * (TRIES - 1) + ["good"], "good", TRIES),
        ([LOST], LOST, TRIES),
        ([CLOSED, CLOSED, "good"], "good", 3),
        ([CLOSED], CLOSED, TRIES),
        ([DEAD], DEAD, 1),  # there is nobody to wait for
        ([LOST, DEAD], DEAD, 2),
        ([STALE], STALE, 1),  # the connection is well, and so would be the next
        ([LOST, STALE], STALE, 2),
        ([Fatal("full")], Fatal, 1),
        ([Unusable("no")], Unusable, 1),
        ([LOST, Fatal("full")], Fatal, 2),
        ([NoPython("none"), "good"], "good", 2),  # the next lane speaks to the shell
        ([LOST, NoPython("none"), LOST, "good"], "good", 4),
    ],
)
async def test_what_is_asked_again(
    pauses: list[float], ends: list[RRMoveError | str], result: object, count: int
) -> None:
    found, times = await tried(*ends)
    assert times == count
    assert isinstance(found, result) if isinstance(result, type) else found is result
    assert len(pauses) == sum(1 for end in [*ends, *ends[-1:] * TRIES][: count - 1] if not isinstance(end, NoPython))


async def test_pauses_double(pauses: list[float]) -> None:
    await tried(LOST)
    assert pauses == [FIRST_PAUSE * 2**number for number in range(TRIES - 1)]


async def test_a_node_that_never_has_python_is_given_up(pauses: list[float]) -> None:
    found, count = await tried(NoPython("none"))
    assert isinstance(found, NoPython)
    assert count <= TRIES
    assert sum(pauses) < 10


# Over real connections


async def test_a_connection_that_dies_over_the_question_is_replaced(tmp_path: Path, pauses: list[float]) -> None:
    async with LocalSession(tmp_path) as session:
        await (await session.control()).ready()
        asking = asyncio.create_task(ask(session, "run", argv=["sleep", "60"], timeout=60))
        while not session.lanes[0]._open_calls:
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        session.channels[0].kill()
        while len(session.channels) < 2:
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        asking.cancel()
        assert len(pauses) == 1
        fields = await ask(session, "hello")
        assert fields["pid"]
        assert len(session.channels) == 2


async def test_connections_that_never_come_up_end_in_their_error(tmp_path: Path, pauses: list[float]) -> None:
    words = "kex_exchange_identification: Connection closed by remote host"
    async with LocalSession(tmp_path, prelude=f"echo '{words}' >&2; exit 255; ") as session:
        with pytest.raises(NoLogin, match="before the login"):
            await ask(session, "hello")
        assert len(session.channels) == TRIES
        assert len(pauses) == TRIES - 1


async def test_a_killed_agent_is_no_answer(tmp_path: Path, pauses: list[float]) -> None:
    async with LocalSession(tmp_path) as session:
        lane = await session.control()
        await lane.ready()
        signal_group(session.pid, signal.SIGKILL)
        fields = await ask(session, "hello")
        assert fields["clean"] is False
        assert not lane.alive
        assert pauses
