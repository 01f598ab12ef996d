"""base64, and moves over connections that are not 8-bit clean, against an embedded node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import rrmove
from rrmove.events import AttemptStarted, Event, Planned, Probed
from rrmove.model import Options, Source
from rrmove.probe import CLEAN, TOOLS, Facts
from rrmove.testing import EmbeddedNode, Faults
from rrmove_plugins.base64 import Base64
from tests.plugins.moves import MB, assert_delivered, cancelled_at, move, node_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("own_experience")

SIZE = 10 * MB


@pytest.fixture(scope="module")
def narrow() -> Iterator[EmbeddedNode]:
    with EmbeddedNode(Faults(seven_bits=True)) as opened:
        yield opened


@pytest.mark.parametrize("size", [0, 1, MB, 10 * MB])
async def test_by_name_it_serves_on_a_good_link(shared: EmbeddedNode, tmp_path: Path, size: int) -> None:
    path = tmp_path / f"{size}.bin"
    path.write_bytes(os.urandom(size))
    outcome = await move(path, shared, "base64")
    assert_delivered(outcome, path, shared)
    assert [attempt.transport for attempt in outcome.attempts] == ["base64"] * (size > 0)
    assert outcome.bytes_sent == pytest.approx(size * 4 / 3, abs=size / MB * 10 + 1)


async def test_it_continues_what_others_began(embedded: EmbeddedNode, source: Path) -> None:
    await cancelled_at(5 * MB, source, embedded, "chunked", 10 * MB)
    outcome = await move(source, embedded, "base64")
    assert_delivered(outcome, source, embedded)
    assert outcome.bytes_reused >= 2 << 20
    assert outcome.bytes_sent <= (SIZE - outcome.bytes_reused) * 4 / 3 + 100


async def test_connections_that_are_reset_cost_little(embedded: EmbeddedNode, source: Path) -> None:
    def cut(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            embedded.faults = Faults(reset_after_bytes=6 * MB)

    outcome = await move(source, embedded, "base64", on_event=cut)
    assert_delivered(outcome, source, embedded)
    assert embedded.resets >= 1
    assert outcome.attempts[0].failure == "transient"
    assert sum(attempt.gained for attempt in outcome.attempts) == SIZE


async def test_a_rate_limit_is_kept(shared: EmbeddedNode, tmp_path: Path) -> None:
    path = tmp_path / "small.bin"
    path.write_bytes(os.urandom(2 * MB))
    outcome = await move(path, shared, "base64", rate=2 * MB)
    assert_delivered(outcome, path, shared)
    assert outcome.attempts[0].seconds > 0.5


@pytest.mark.parametrize("ssh", ["openssh", "paramiko"])
@pytest.mark.parametrize("hidden", [(), ("python3",)], ids=["python", "shell"])
async def test_where_bytes_are_altered_it_is_chosen(ssh: str, hidden: tuple[str, ...], tmp_path: Path) -> None:
    size = 3 * MB if hidden else SIZE  # a shell decodes 1 MB/s
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(size))
    said: list[Event] = []
    with EmbeddedNode(Faults(seven_bits=True, hidden_tools=frozenset(hidden))) as node:
        outcome = await rrmove.move(path, node_of(node), on_event=said.append, ssh=ssh)
        assert_delivered(outcome, path, node)
    assert "no" in [event.facts["clean"] for event in said if isinstance(event, Probed)]
    if size > 4 << 20:  # a smaller one does not wait for facts
        plan = next(event.plan for event in said if isinstance(event, Planned))
        assert [step.transport for step in plan.steps][:2] == ["base64", "chunked"]
        assert {"rsync", "scp"} <= {each.transport for each in plan.refusals if "alters bytes" in each.reason}
        assert [attempt.transport for attempt in outcome.attempts] == ["base64"]


async def test_where_bytes_are_altered_chunked_serves_too(narrow: EmbeddedNode, source: Path) -> None:
    outcome = await move(source, narrow, "chunked")
    assert_delivered(outcome, source, narrow)
    assert [(attempt.transport, attempt.error) for attempt in outcome.attempts] == [("chunked", None)]


async def test_a_small_file_gets_there_before_anything_is_known(narrow: EmbeddedNode, tmp_path: Path) -> None:
    path = tmp_path / "ümläut.bin"
    path.write_bytes(bytes(range(256)) * 10)
    assert_delivered(await rrmove.move(path, node_of(narrow)), path, narrow)


@pytest.mark.parametrize(
    ("answers", "only", "refused"),
    [
        ({}, (), "not needed"),
        ({CLEAN.name: "yes"}, (), "not needed"),
        ({CLEAN.name: "yes"}, ("base64",), None),
        ({}, ("base64", "rsync"), None),
        ({CLEAN.name: "no"}, (), None),
        ({CLEAN.name: "no", TOOLS.name: "have openssl\nlisted\n"}, (), None),
        ({CLEAN.name: "no", TOOLS.name: "have rsync\nlisted\n"}, (), "to decode with"),
        ({TOOLS.name: "have rsync\nlisted\n"}, ("base64",), "to decode with"),
    ],
)
def test_who_is_refused(source: Path, answers: dict[str, str], only: tuple[str, ...], refused: str | None) -> None:
    node = rrmove.Node(name="n1")
    request = rrmove.Request(source=Source.of(source), node=node, options=Options(only=only))
    answer = Base64().refuse(request, Facts(answers))
    assert (answer is None) if refused is None else (answer is not None and refused in answer)
