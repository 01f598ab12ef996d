"""Nodes that pass a file on while it comes in: real givers and pullers on embedded nodes, on loopback."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

import rrmove
from rrmove.foresight import foresee
from rrmove.model import Limit, Node, SSHSettings
from rrmove.setting import log_in
from rrmove.siblings.door import open_door, reached
from rrmove.testing import EmbeddedNode
from rrmove_plugins.sibling import Sibling
from rrmove_plugins.sibling.pull import Pull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rrmove.siblings.door import Door

GRAIN = 2 << 20
SIZE = 3 * GRAIN + 5


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, EmbeddedNode]]:
    with ExitStack() as stack:
        yield {f"gpu-{number}": stack.enter_context(EmbeddedNode(name=f"gpu-{number}")) for number in range(3)}


@pytest.fixture
def source(tmp_path: Path, nodes: dict[str, EmbeddedNode], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for node in nodes.values():
        (node.home / "model.pth").unlink(missing_ok=True)
    path = tmp_path / "model.pth"
    path.write_bytes(os.urandom(SIZE))
    return path


def placed(node: EmbeddedNode, name: str, *limits: Limit) -> Node:
    return Node(name=name, ssh=SSHSettings(config=node.ssh_config), limits=limits)


@pytest.mark.parametrize("whose", ["the command's", "the provider's"])
async def test_all_get_it_and_only_one_from_us(nodes: dict[str, EmbeddedNode], source: Path, whose: str) -> None:
    """Under a limit for all together, which is for what leaves from here."""
    limits = (Limit("provider p", 8e6),) if whose == "the provider's" else ()
    rate = None if limits else 8e6
    targets = [placed(node, name, *limits) for name, node in nodes.items()]
    outcomes = [outcome async for outcome in rrmove.distribute(source, targets, limit_rate=rate, without=("http",))]
    assert all(outcome.ok for outcome in outcomes), [outcome.error for outcome in outcomes]
    ways = sorted(outcome.attempts[-1].transport for outcome in outcomes)
    assert ways[-2:] == ["sibling", "sibling"]
    assert sum(outcome.bytes_sent for outcome in outcomes) < 1.5 * SIZE
    for node in nodes.values():
        assert (node.home / "model.pth").read_bytes() == source.read_bytes()
        assert not any("rrmove" in path.name for path in node.home.iterdir())
    (first,) = [outcome for outcome in outcomes if outcome.attempts[-1].transport != "sibling"]
    assert (first.request.audience, first.request.offer and first.request.offer.first) == (1, True)


async def test_who_is_alone_is_told_so(nodes: dict[str, EmbeddedNode], source: Path) -> None:
    with pytest.raises(rrmove.NoRouteError, match="no transport") as caught:
        await rrmove.move(source, placed(nodes["gpu-0"], "gpu-0"), only=("sibling",))
    assert "no other node" in next(each.reason for each in caught.value.refusals if each.transport == "sibling")


def test_it_refuses_by_what_was_found(source: Path, nodes: dict[str, EmbeddedNode]) -> None:
    request = rrmove.Request(source=rrmove.Source.of(source), node=placed(nodes["gpu-0"], "gpu-0"))
    facts = rrmove.Facts()

    def refused(offer: rrmove.Offer | None) -> str | None:
        asked = rrmove.Request(source=request.source, node=request.node, audience=3, offer=offer)
        return Sibling().refuse(asked, facts)

    assert "no other node" in (refused(None) or "")
    assert refused(rrmove.Offer(why="it does not reach gpu-1")) == "it does not reach gpu-1"
    assert refused(rrmove.Offer(giver="gpu-1")) is None


async def test_a_plan_for_many_says_who_would_pull_from_whom_and_moves_nothing(
    nodes: dict[str, EmbeddedNode], source: Path
) -> None:
    targets = [placed(node, name) for name, node in nodes.items()]
    dead = Node(name="dead", ssh=SSHSettings(host="127.0.0.1", port=1))
    first, second, third, lost = await foresee(source, [*targets, dead], limit_rate=1e6)
    assert lost.preview is None
    assert isinstance(lost.error, rrmove.RRMoveError)
    assert [set(each.reaches) for each in (first, second, third)] == [
        {"gpu-1", "gpu-2"},
        {"gpu-0", "gpu-2"},
        {"gpu-0", "gpu-1"},
    ]
    plans = [each.preview for each in (first, second, third)]
    offers = [plan.request.offer for plan in plans if plan is not None]
    assert [offer is not None and (offer.first, offer.giver) for offer in offers] == [
        (True, None),
        (False, "gpu-0"),
        (False, "gpu-0"),
    ]
    assert [plan.plan.steps[0].transport for plan in plans if plan is not None][1:] == ["sibling", "sibling"]
    terms = [what for plan in plans[1:] if plan for step in plan.plan.steps for what, _ in step.estimate.terms]
    assert any("shared by 3" in what for what in terms)
    assert not any("model.pth" in path.name for node in nodes.values() for path in node.home.iterdir())


class Pulling:
    """A puller in this process, told as the transport would tell it."""

    def __init__(self, part: Path, data: bytes, door: Door, host: str) -> None:
        pieces = []
        for start in range(0, len(data), GRAIN):
            piece = data[start : start + GRAIN]
            pieces.append((start, start + len(piece), hashlib.sha256(piece).hexdigest()))
        with part.open("wb") as file:
            file.truncate(len(data))
        given = {"file": str(part), "size": len(data), "rate": None, "streams": 2, "pieces": pieces}
        end = door.endpoint
        self.giver = {"id": 0, "host": host, "port": end.port, "path": end.path, "token": end.token}
        self.giver["fingerprint"] = end.fingerprint
        self.pull = Pull(given, "")
        self.pull.begin()

    def ask(self, wait: float = 0.3, **more: Any) -> dict[str, Any]:
        question = {"giver": {**self.giver, **more}, "wait": wait}
        said = json.loads(self.pull.answer(json.dumps(question).encode()))
        assert isinstance(said, dict)
        return said


async def test_what_is_not_there_yet_comes_later_and_what_is_altered_is_never_written(
    nodes: dict[str, EmbeddedNode], source: Path, tmp_path: Path
) -> None:
    data, node = source.read_bytes(), nodes["gpu-0"]
    growing = node.home / ".growing"
    with growing.open("wb") as file:
        file.truncate(SIZE)
        file.write(data[:GRAIN])
    async with log_in(placed(node, "gpu-0")) as session:
        door = await open_door(session, str(growing), SIZE, [0])
        host = await reached(session, door)
        assert host is not None
        pulling = Pulling(tmp_path / "part", data, door, host)
        try:
            for _ in range(20):
                said = pulling.ask()
                if said["got"] >= GRAIN:
                    break
            assert (said["got"], said["left"], said["failed"]) == (GRAIN, 3, {})
            # A chunk that is there and wrong: of a file that is growing, that is no news; of a whole one it is
            with growing.open("r+b") as file:
                file.seek(GRAIN)
                file.write(bytes(GRAIN - 1) + b"\1" + data[2 * GRAIN :])
            await door.renew(whole=True)
            for _ in range(40):
                said = pulling.ask()
                if said["failed"]:
                    break
            assert "altered" in said["failed"]["0"]
            there = (tmp_path / "part").read_bytes()
            assert there == data[:GRAIN] + bytes(GRAIN) + data[2 * GRAIN :]
            # Somebody else in its place: nothing is told to him
            said = pulling.ask(id=1, fingerprint="00" * 32)
            said = pulling.ask(id=1, fingerprint="00" * 32)
            assert "another certificate" in said["failed"]["1"]
        finally:
            pulling.pull.end()
            await door.lease.end()
            growing.unlink()
