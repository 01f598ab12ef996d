"""Retry: asking the node once more over a new connection when the old one has died."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from rrmove.errors import Transient
from rrmove.ssh.failures import NoLogin, NoPython, NotClean, NotOurs, NotTheNode, StaleError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rrmove.session import Lane, Session

T = TypeVar("T")
TRIES = 6  # connections in a row that die over one question before it is given up
FIRST_PAUSE = 0.25  # s, doubled each time; six tries then span some 8 s, longer than sshd's sulking


async def persistently(ask: Callable[[], Awaitable[T]]) -> T:
    """Await `ask()`, and again with growing pauses while it ends in Transient.

    A node that does not answer at all, or a part file that is not as it should be, is not asked
    again. Raises the last error. `ask` has to be idempotent.
    """
    pause = FIRST_PAUSE
    for left in reversed(range(TRIES)):
        try:
            return await ask()
        except StaleError:
            raise
        except (NoPython, NotClean, NotOurs, NotTheNode):
            if not left:
                raise
            continue  # the next lane speaks to the shell instead, or in text, over ssh, or goes to another address
        except Transient as error:
            if not left or (isinstance(error, NoLogin) and error.hopeless):
                raise
        await asyncio.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable: the last try returns or raises")


async def ask(session: Session, op: str, /, **arguments: object) -> dict[str, object]:
    """Put one idempotent operation to whatever lane is alive, persistently; gives the answer's fields."""

    async def once() -> dict[str, object]:
        lane: Lane = await session.control()
        return dict((await lane.call(op, b"", **arguments)).fields)

    return await persistently(once)
