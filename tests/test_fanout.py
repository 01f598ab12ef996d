"""One file to many nodes, each of them real: who gets it, who does not, and what is done only once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from contextlib import ExitStack, aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import rrmove
from benchmarks.crowd import measure
from rrmove import common, fanout, manifest
from rrmove.hooks import load_hooks
from rrmove.inventory import load_inventory
from rrmove.limits.bucket import TokenBucket
from rrmove.model import Node, SSHSettings
from rrmove.testing import EmbeddedNode, Faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rrmove.events import Event

SIZE = 5_000_003


def placed(node: EmbeddedNode, name: str, destination: str | None = None) -> Node:
    return Node(name=name, ssh=SSHSettings(config=node.ssh_config), destination=destination)


def of(nodes: dict[str, EmbeddedNode]) -> list[Node]:
    return [placed(node, name) for name, node in nodes.items()]


async def all_of(source: Path, targets: Any, **wishes: Any) -> dict[str, rrmove.Outcome]:
    """Distribute, and give the outcomes by node, in the order in which they came."""
    return {outcome.request.node.name: outcome async for outcome in rrmove.distribute(source, targets, **wishes)}


def content(node: EmbeddedNode) -> bytes | None:
    path = node.home / "model.pth"
    return path.read_bytes() if path.exists() else None


@pytest.fixture(autouse=True)
def own_experience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[str, EmbeddedNode]]:
    with ExitStack() as stack:
        yield {f"gpu-{number}": stack.enter_context(EmbeddedNode(name=f"gpu-{number}")) for number in range(8)}


@pytest.fixture
def nodes(kept: dict[str, EmbeddedNode]) -> dict[str, EmbeddedNode]:
    """Give eight nodes, empty."""
    for node in kept.values():
        for path in node.home.iterdir():
            if path.is_file():
                path.unlink()
    return kept


async def test_a_dead_node_and_a_full_one_hold_up_nobody(nodes: dict[str, EmbeddedNode], source: Path) -> None:
    shut, small = Faults(reject_auth=True), Faults(disk_bytes=1_000_000)
    with EmbeddedNode(shut, name="dead") as dead, EmbeddedNode(small, name="full") as full:
        bad = [placed(dead, "dead"), placed(full, "full")]
        outcomes = await all_of(source, [*bad, *of(nodes)][:8])
        assert not any(path.is_file() and path.stat().st_size > 1_000_000 for path in full.home.rglob("*"))
    good = {name: node for name, node in nodes.items() if name in outcomes}
    assert len(outcomes) == 8
    assert len(good) == 6
    for name, node in good.items():
        assert outcomes[name].ok
        assert content(node) == source.read_bytes()
    assert {name for name, outcome in outcomes.items() if not outcome.ok} == {"dead", "full"}
    assert "key" in (outcomes["dead"].error or "")
    assert "the disk is full" in (outcomes["full"].error or "")


async def test_outcomes_come_as_they_end_and_not_in_the_order_of_the_targets(
    nodes: dict[str, EmbeddedNode], source: Path
) -> None:
    slow, quick = nodes["gpu-0"], nodes["gpu-1"]
    slow.faults = Faults(rate=2e6)
    try:
        outcomes = await all_of(source, [placed(slow, "gpu-0"), placed(quick, "gpu-1")], only=("chunked",))
    finally:
        slow.faults = Faults()
    assert list(outcomes) == ["gpu-1", "gpu-0"]
    assert content(slow) == content(quick) == source.read_bytes()


async def test_the_source_is_hashed_and_judged_once(
    nodes: dict[str, EmbeddedNode], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Judge:
        @rrmove.hookimpl
        def rrmove_prepare(self, source: rrmove.Source) -> None:
            with source.path.open("ab") as file:
                file.write(b"prepared")
            done.append("prepare")

        @rrmove.hookimpl
        def rrmove_validate(self) -> None:
            done.append("validate")

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(manifest, name)

        def count(*args: Any, **words: Any) -> Any:
            done.append(name)
            return real(*args, **words)

        return count

    digest = hashlib.sha256(source.read_bytes() + b"prepared").hexdigest()
    monkeypatch.setattr(manifest, "build", counted("build"))
    monkeypatch.setattr(manifest, "file_sha256", counted("file_sha256"))
    monkeypatch.setattr(common, "load_hooks", lambda: load_hooks([Judge()]))
    outcomes = await all_of(source, of(nodes), sha256=digest, only=("chunked",))
    assert {outcome.digest for outcome in outcomes.values()} == {f"sha256:{digest}"}
    assert sorted(done) == ["build", "file_sha256", "prepare", "validate"]
    assert all(content(node) == source.read_bytes() for node in nodes.values())


async def test_a_source_that_is_not_the_one_is_each_ones_error_under_its_own_name(
    nodes: dict[str, EmbeddedNode], source: Path
) -> None:
    outcomes = await all_of(source, of(nodes)[:3], sha256="ab" * 32)
    assert len(outcomes) == 3
    for name, outcome in outcomes.items():
        assert (outcome.error or "").startswith(f"{name}: ")
        assert "has SHA-256" in (outcome.error or "")
        assert outcome.request.node.name == name
        assert content(nodes[name]) is None


async def test_a_file_that_is_turned_down_is_nowhere(
    nodes: dict[str, EmbeddedNode], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Judge:
        @rrmove.hookimpl
        def rrmove_validate(self) -> str:
            return "no"

    monkeypatch.setattr(common, "load_hooks", lambda: load_hooks([Judge()]))
    outcomes = await all_of(source, of(nodes)[:4])
    assert not any(outcome.ok for outcome in outcomes.values())
    assert all(content(node) is None for node in nodes.values())


async def test_a_rate_limit_is_for_all_together(nodes: dict[str, EmbeddedNode], source: Path) -> None:
    for only in ("chunked", "rsync"):  # one that asks for every byte, and one that limits itself
        sent: list[float] = []

        def see(event: Event, sent: list[float] = sent) -> None:
            if isinstance(event, rrmove.AttemptStarted | rrmove.Verified):
                sent.append(time.monotonic())

        outcomes = await all_of(source, of(nodes)[:3], limit_rate=8e6, only=(only,), on_event=see)
        assert all(outcome.ok for outcome in outcomes.values())
        # No quicker than allowed, but for what may be saved up; nodes by themselves would take a third of it.
        assert max(sent) - min(sent) >= 0.8 * (3 * SIZE - 0.8e6) / 8e6
        for node in nodes.values():
            (node.home / "model.pth").unlink(missing_ok=True)


async def test_what_programs_send_counts_against_the_limit_of_all() -> None:
    whole = TokenBucket(1e6, sharers=4)
    program, asking = TokenBucket(None, within=whole), TokenBucket(None, within=whole)
    assert program.rate == 250_000
    assert TokenBucket(1000, within=whole).rate == 1000
    program.reckon(300_000)
    before = time.monotonic()
    await asking.take(1)
    assert time.monotonic() - before >= 0.15  # the debt, less what may have been saved up
    await asking.take(50_000)
    before = whole._tokens
    asking.reckon(50_001)  # it had asked for these
    assert whole._tokens == before


async def test_a_repeat_sends_what_is_missing_and_only_where_it_is(
    nodes: dict[str, EmbeddedNode], source: Path
) -> None:
    quick, slow, fresh = nodes["gpu-0"], nodes["gpu-1"], nodes["gpu-2"]
    targets = of({"gpu-0": quick, "gpu-1": slow})
    slow.faults = Faults(rate=1.5e6)
    half = asyncio.Event()

    def see(event: Event) -> None:
        if event.node == "gpu-1" and isinstance(event, rrmove.Progressed) and event.durable > 2_200_000:
            half.set()

    async with aclosing(rrmove.distribute(source, targets, only=("chunked",), on_event=see)) as ends:
        async for outcome in ends:
            assert outcome.request.node.name == "gpu-0"
            await half.wait()
            break
    slow.faults = Faults()
    assert content(slow) is None
    assert any("rrmove-part" in path.name for path in slow.home.iterdir())
    again = await all_of(source, [*targets, placed(fresh, "gpu-2")], only=("chunked",))
    assert all(outcome.ok for outcome in again.values())
    assert (again["gpu-0"].bytes_sent, again["gpu-0"].bytes_reused) == (0, SIZE)
    assert 0 < again["gpu-1"].bytes_reused < SIZE
    assert again["gpu-1"].bytes_sent <= 1.05 * (SIZE - again["gpu-1"].bytes_reused)
    assert again["gpu-2"].bytes_reused == 0
    assert content(quick) == content(slow) == content(fresh) == source.read_bytes()
    assert not any("rrmove" in path.name for path in slow.home.iterdir())


async def test_what_is_wrong_with_the_call_is_said_before_anyone_logs_in(
    nodes: dict[str, EmbeddedNode], source: Path, tmp_path: Path
) -> None:
    node = nodes["gpu-0"]
    good, before = placed(node, "gpu-0"), node.logins
    calls: list[tuple[Any, Any, dict[str, Any], str]] = [
        (source, [good, "nowhere-at-all"], {}, "unknown node"),
        (source, [good, "./here"], {}, "local path"),
        (source, [], {}, "no target"),
        (source, [good, replace(good, ssh=SSHSettings(user="other"))], {}, "named twice"),
        (source, [good], {"settings": {"chunked.bogus": 1}}, "bogus"),
        (source, [good], {"concurrency": 0}, "not even one"),
        (tmp_path / "missing", [good], {}, "cannot read"),
    ]
    for path, targets, wishes, said in calls:
        with pytest.raises(rrmove.UsageError, match=said):
            await all_of(path, targets, **wishes)
    with pytest.raises(TypeError, match="retries"):
        await all_of(source, [good], retries=3)
    assert node.logins == before
    assert not (node.home / "model.pth").exists()


async def test_a_place_that_is_named_twice_is_one_and_two_on_one_node_take_turns(
    nodes: dict[str, EmbeddedNode], source: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("\n".join(nodes[name].ssh_config.read_text() for name in ("gpu-0", "gpu-1")))
    path = tmp_path / "nodes.toml"
    path.write_text('[nodes.gpu-0]\ntags = ["gpu"]\n[nodes.gpu-1]\ntags = ["gpu"]\n')
    inventory = load_inventory(path, ssh_config=config)
    seen: list[str] = []

    def see(event: Event) -> None:
        if isinstance(event, rrmove.AttemptStarted | rrmove.Finished):
            seen.append(f"{event.node} {type(event).__name__}")

    found = [
        outcome
        async for outcome in rrmove.distribute(
            source, ["@gpu", "gpu-1", "gpu-0:more/", "@gpu"], inventory=inventory, on_event=see
        )
    ]
    assert sorted(outcome.destination or "" for outcome in found) == sorted(
        str(nodes[name].home / rest)
        for name, rest in (("gpu-0", "model.pth"), ("gpu-1", "model.pth"), ("gpu-0", "more/model.pth"))
    )
    assert (nodes["gpu-0"].home / "more/model.pth").read_bytes() == source.read_bytes()
    assert [each for each in seen if each.startswith("gpu-0")] == ["gpu-0 AttemptStarted", "gpu-0 Finished"] * 2


async def test_no_more_moves_are_at_work_than_allowed(nodes: dict[str, EmbeddedNode], source: Path) -> None:
    now, most = set[str](), 0

    def see(event: Event) -> None:
        nonlocal most
        (now.discard if isinstance(event, rrmove.Finished) else now.add)(event.node)
        most = max(most, len(now))

    assert len(await all_of(source, of(nodes), concurrency=3, on_event=see)) == 8
    assert most == 3


async def test_who_is_silent_makes_room_for_the_next_and_who_is_not_does_not() -> None:
    slots = rrmove.Slots(1, patience=0.1)
    async with slots.one(), asyncio.timeout(10), slots.one():
        pass  # the first one said nothing, and did not hold up the second
    async with slots.one() as alive:
        waiting = asyncio.create_task(slots.one().__aenter__())
        for _ in range(12):
            await asyncio.sleep(0.03)
            alive()
            assert not waiting.done()
    await asyncio.wait_for(waiting, 10)


@pytest.mark.parametrize("raised", [ValueError("a bug"), SystemExit(3), asyncio.CancelledError()])
async def test_what_nobody_expected_is_the_outcome_of_the_node_where_it_was(
    raised: BaseException, nodes: dict[str, EmbeddedNode], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rrmove.move

    async def move(source: rrmove.Source, node: Node, **wishes: Any) -> rrmove.Outcome:
        if node.name == "gpu-1":
            raise raised
        return await real(source, node, **wishes)

    monkeypatch.setattr(fanout, "move", move)
    outcomes = await all_of(source, of(nodes)[:3])
    assert {name: outcome.ok for name, outcome in outcomes.items()} == {"gpu-0": True, "gpu-1": False, "gpu-2": True}
    assert type(raised).__name__ in (outcomes["gpu-1"].error or "")


async def test_a_deadline_is_for_all_together(nodes: dict[str, EmbeddedNode], source: Path) -> None:
    outcomes = await all_of(source, of(nodes)[:3], concurrency=1, deadline=1.5, limit_rate=2e6, only=("chunked",))
    assert len(outcomes) == 3
    assert all("deadline of 1.5 s" in (outcome.error or "") for outcome in outcomes.values())
    assert all(content(node) is None for node in nodes.values())


async def test_a_transport_that_blocks_is_named_among_those_at_work(
    nodes: dict[str, EmbeddedNode], source: Path
) -> None:
    class Blocker:
        name, api_version, needs = "blocker", rrmove.API_VERSION, ()
        capabilities = rrmove.Capabilities(resume="exact", route="ssh", ranges=True)
        turns = 0

        def refuse(self, *_: object) -> None:
            return None

        async def send(self, job: rrmove.Job) -> None:
            # The first one at work is over by then: the watch has to go on without it.
            type(self).turns += 1
            if job.request.node.name == "gpu-0":
                raise rrmove.Unusable("no")
            await asyncio.sleep(0.3)
            time.sleep(30)

    before = time.monotonic()
    outcomes = await all_of(source, of(nodes)[:2], plugins=(Blocker,), patience=1.0, without=("rsync", "scp", "http"))
    assert all(outcome.ok for outcome in outcomes.values())
    assert Blocker.turns >= 2
    words = [attempt.error or "" for attempt in outcomes["gpu-1"].attempts]
    assert any("blocker blocked the event loop" in each for each in words)
    assert time.monotonic() - before < 25


def test_to_many_nodes_under_resets_in_little_memory() -> None:
    """A small benchmarks/crowd.py: the nodes are in a process of their own, and the command is weighed."""
    found = measure(10, 4 << 20, 1_500_000)
    assert found["code"] == 0, found["out"]
    assert found["whole"] == found["reset"] == 10
    assert found["sent"] < 1.3
    weight = found["weight"]
    assert len(weight.by_program) >= 2, "its children were not seen"
    # As much for itself as it has in any move, and for each connection less than 10 MB: at 64 nodes that is 200.
    assert weight.pss <= 40e6 + 10e6 * (1 + 10)
