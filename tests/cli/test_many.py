"""`rrmove auto` to many nodes: the table, the words, the lines of JSON, the exit codes; some of it with real nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rrmove.cli.board import LiveBoard, PlainBoard
from rrmove.cli.tallies import Tallies
from rrmove.errors import Fatal
from rrmove.events import AttemptFailed, AttemptStarted, Finished, Progressed
from rrmove.model import Attempt, Node, Outcome, Source
from rrmove.testing import EmbeddedNode, Faults
from tests.cli.scripted import DIGEST, already_there, environment, events_of, outcome_of, replace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.cli.scripted import Said


class Distribution:
    """A scripted `ended()`: gpu-3 gets the file, gpu-4 has it already, and those in `errors` fail."""

    def __init__(self) -> None:
        self.errors: dict[str, BaseException] = {}
        self.wishes: dict[str, Any] = {}
        self.stops = False

    async def ended(
        self, source: Path, nodes: tuple[Node, ...], **wishes: Any
    ) -> AsyncIterator[tuple[Outcome, BaseException | None]]:
        self.wishes = wishes
        seen = Source.of(source)
        for node in nodes:
            for event in events_of(seen, node):
                wishes["on_event"](event)
            outcome, error = outcome_of(seen, node), self.errors.get(node.name)
            if node.name == "gpu-4":
                outcome = already_there(seen, node)
            outcome = changed(outcome, request=changed(outcome.request, destination=node.destination or ""))
            if error is not None:
                outcome = changed(outcome, digest=None, error=str(error))
            wishes["on_event"](Finished(node.name, outcome))
            yield outcome, error
            if self.stops:
                raise KeyboardInterrupt


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Distribution:
    scripted = Distribution()
    replace(monkeypatch, "rrmove.fanout", ended=scripted.ended, AT_ONCE=16)
    return scripted


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_table_says_what_came_of_each(rrmove: Callable[..., Said], scripted: Distribution) -> None:
    said = rrmove("auto", "model.pth", "@gpu", "--at-once", "3", "--limit-rate", "1M")
    assert (said.code, said.out.splitlines()) == (
        0,
        [
            "NODE   RESULT          TOOK      RATE     SENT   REUSED  BY",
            "gpu-3  verified       2.0 s  500 kB/s  1.00 MB           chunked",
            "gpu-4  already there  0.5 s                     1.00 MB",
        ],
    )
    assert (scripted.wishes["concurrency"], scripted.wishes["limit_rate"]) == (3, 1e6)


def test_who_failed_is_named_once_with_what_to_do(rrmove: Callable[..., Said], scripted: Distribution) -> None:
    scripted.errors["gpu-3"] = Fatal("the disk is full", node="gpu-3", remedy="Make room")
    said = rrmove("auto", "model.pth", "gpu-3", "gpu-4")
    assert said.code == 1
    assert "gpu-3  failed" in said.out
    assert "already there" in said.out
    assert said.err.endswith(
        "rrmove: gpu-3: the disk is full\n    Make room\nrrmove: 1 of 2 places have the file, 1 failed\n"
    )
    assert said.err.count("Make room") == 1


def test_what_several_have_in_common_is_said_once(rrmove: Callable[..., Said], scripted: Distribution) -> None:
    for name in ("gpu-3", "gpu-4"):
        scripted.errors[name] = Fatal("the source is another", node=name, remedy="Look")
    said = rrmove("auto", "model.pth", "@gpu")
    assert said.code == 1
    assert "rrmove: gpu-3, gpu-4: the source is another\n    Look\n" in said.err
    assert said.err.count("Look") == 1


def test_an_internal_error_of_one_is_written_down(rrmove: Callable[..., Said], scripted: Distribution) -> None:
    scripted.errors["gpu-3"] = ValueError("a bug")
    said = rrmove("auto", "model.pth", "@gpu")
    assert said.code == 1
    assert "internal error: ValueError: a bug; the details are in" in said.err
    assert "on the way to gpu-3" in said.err
    assert "Traceback" not in said.err


def test_quiet_says_nothing_but_errors(rrmove: Callable[..., Said], scripted: Distribution) -> None:
    said = rrmove("auto", "model.pth", "@gpu", "-q")
    assert scripted.wishes
    assert (said.code, said.out, said.err) == (0, "", "")


def test_two_places_on_one_node_are_two_rows(rrmove: Callable[..., Said], scripted: Distribution) -> None:
    said = rrmove("auto", "model.pth", "gpu-3", "gpu-3:/x/", "gpu-3")
    assert scripted.wishes
    assert [line.split()[0] for line in said.out.splitlines()] == ["NODE", "gpu-3:/data", "gpu-3:/x/"]


def test_json_has_an_outcome_for_each_and_a_last_line_for_all(
    rrmove: Callable[..., Said], scripted: Distribution
) -> None:
    scripted.errors["gpu-3"] = Fatal("the disk is full", node="gpu-3")
    said = rrmove("auto", "model.pth", "@gpu", "--json")
    *events, last = lines(said.out)
    assert said.code == 1
    assert {event["event"] for event in events if event["node"] == "gpu-4"} >= {"progressed", "committed", "finished"}
    assert [(each["node"], each["ok"]) for each in events if each["event"] == "finished"] == [
        ("gpu-3", False),
        ("gpu-4", True),
    ]
    assert last == {
        "event": "distributed",
        "ok": False,
        "source": "model.pth",
        "size": 1_000_000,
        "seconds": last["seconds"],
        "nodes": [
            {
                "node": "gpu-3",
                "ok": False,
                "destination": "/data/model.pth",
                "transport": None,
                "bytes_sent": 1_000_000,
                "bytes_reused": 0,
                "seconds": 2.0,
                "error": "gpu-3: the disk is full",
            },
            {
                "node": "gpu-4",
                "ok": True,
                "destination": "/data/model.pth",
                "transport": None,
                "bytes_sent": 0,
                "bytes_reused": 1_000_000,
                "seconds": 0.5,
                "error": None,
            },
        ],
    }
    assert DIGEST in said.out


def test_an_interruption_leaves_nobody_out(rrmove: Callable[..., Said], scripted: Distribution) -> None:
    scripted.stops = True
    said = rrmove("auto", "model.pth", "@gpu", "--json")
    *events, last = lines(said.out)
    assert said.code == 130
    assert [each["node"] for each in events if each["event"] == "finished"] == ["gpu-3", "gpu-4"]
    assert [(each["node"], each["ok"], each["error"]) for each in last["nodes"]] == [
        ("gpu-3", True, None),
        ("gpu-4", False, "interrupted"),
    ]
    said = rrmove("auto", "model.pth", "@gpu")
    assert said.code == 130
    assert "gpu-4  interrupted" in said.out
    assert "interrupted; 1 of 2 places have the file" in said.err


@pytest.mark.parametrize("words", [["gpu-3", "nowhere-at-all"], ["gpu-3", "./here"]])
def test_a_wrong_call_has_its_last_line_too(
    words: list[str], rrmove: Callable[..., Said], scripted: Distribution
) -> None:
    said = rrmove("auto", "model.pth", *words, "--json")
    (last,) = lines(said.out)
    assert not scripted.wishes
    assert said.code == 2
    assert (last["event"], last["ok"], last["nodes"]) == ("distributed", False, [])
    assert last["error"]


# What is seen meanwhile


def tallies_of(*names: str, at_once: int = 16) -> Tallies:
    return Tallies(names, 1_000_000, at_once)


def ended(name: str, size: int = 1_000_000, error: str | None = None) -> Outcome:
    seen = Source(
        path=Path("model.pth"), name="model.pth", size=size, mode=0o644, mtime_ns=0, ctime_ns=0, device=0, inode=0
    )
    return changed(outcome_of(seen, Node(name=name)), error=error)


def test_the_sum_leaves_out_who_failed() -> None:
    tallies = tallies_of("a", "b", "c", "d", at_once=2)
    for name in ("a", "b"):
        tallies.see(AttemptStarted(name, "chunked", 1_000_000, 1_000_000), 0.0)
        tallies.see(Progressed(name, 400_000, 1_000_000), 1.0)
    assert (tallies.durable, tallies.size) == (800_000, 4_000_000)
    assert [tallies.queued(name) for name in tallies.names] == [False, False, True, True]
    tallies.ended(ended("a"))
    tallies.ended(ended("b", error="no"))
    assert (tallies.arrived, tallies.lost, tallies.durable, tallies.size) == (1, 1, 1_000_000, 3_000_000)
    assert not any(tallies.queued(name) for name in tallies.names)


def test_the_second_place_on_a_node_begins_anew() -> None:
    tallies = Tallies(["a", "a"], 1_000_000, 16)
    tallies.see(AttemptStarted("a", "chunked", 1_000_000, 1_000_000), 0.0)
    tallies.see(Progressed("a", 1_000_000, 1_000_000), 1.0)
    tallies.ended(ended("a"))
    assert (tallies.over("a"), tallies.durable, tallies.size) == (False, 1_000_000, 2_000_000)
    tallies.see(AttemptStarted("a", "chunked", 1_000_000, 1_000_000), 2.0)
    tallies.see(Progressed("a", 300_000, 1_000_000), 3.0)
    assert tallies.durable == 1_300_000
    tallies.ended(ended("a"))
    assert tallies.over("a")
    assert tallies.durable == tallies.size == 2_000_000


def test_plain_lines_name_their_node_and_sum_up(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    board = PlainBoard("model.pth", tallies_of("a", "b"), clock=lambda: now)
    for name in ("a", "b"):
        board(AttemptStarted(name, "rsync", 1_000_000, 1_000_000))
    failed = Attempt(transport="rsync", started=0, seconds=1, bytes_sent=0, gained=0, error="no", failure="unusable")
    board(AttemptFailed("b", failed))
    now = 6.0
    board(Progressed("a", 600_000, 1_000_000))
    board.ended(ended("a"))
    board.ended(ended("b", error="b: full"), "full")
    board.close()
    assert capsys.readouterr().err.splitlines() == [
        "b: rsync failed after 1.0 s: no",
        "model.pth -> 2 places: 0 there, 600 kB of 2.00 MB, 100 kB/s, 14 s left",
        "a: verified in 2.0 s",
        "b: failed: full",
    ]


@pytest.mark.parametrize(("count", "height"), [(3, 24), (12, 24), (40, 12)])
def test_lines_on_a_terminal_never_break_nor_leave_it(
    count: int, height: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", str(height))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    names = [f"a-node-with-a-rather-long-name-{number}" for number in range(count)]
    now = 0.0
    board = LiveBoard("model.pth", Tallies(names, 955_000_000, 16), clock=lambda: now)
    for name in names[:16]:
        board(AttemptStarted(name, "chunked", 955_000_000, 955_000_000))
        board(Progressed(name, 412_000_000, 955_000_000))
    board.ended(ended(names[0], 955_000_000))
    now = 8.0
    capsys.readouterr()
    board.tick()
    drawn = [line for line in _last_frame(capsys.readouterr().err).splitlines() if line.strip()]
    board.close()
    assert len(drawn) == min(count, height - 3) + 1
    assert max(map(len, drawn)) < 80
    assert f"1 of {count} there" in drawn[-1]


def _last_frame(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.rpartition("\x1b[2K")[2])


# With real nodes


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, EmbeddedNode], list[str]]]:
    """Give four nodes, of which `full` has no room, and the options with which a command finds them."""
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        nodes = {
            name: stack.enter_context(EmbeddedNode(Faults(disk_bytes=500_000 if name == "full" else None), name=name))
            for name in ("one", "two", "slow", "full")
        }
        (folder / "config").write_text("\n".join(node.ssh_config.read_text() for node in nodes.values()))
        (folder / "nodes.toml").write_text("".join(f'[nodes.{name}]\ntags = ["all"]\n' for name in nodes))
        yield nodes, ["-F", str(folder / "config"), "--nodes", str(folder / "nodes.toml")]


def test_a_command_moves_to_all_but_the_full_one(
    cluster: tuple[dict[str, EmbeddedNode], list[str]], rrmove: Callable[..., Said], home: Path
) -> None:
    nodes, access = cluster
    said = rrmove("auto", "model.pth", "@all", "one:more/", "nowhere.invalid", "--json", *access)
    *_, last = lines(said.out)
    assert said.code == 1
    assert {each["node"] for each in last["nodes"] if not each["ok"]} == {"full", "nowhere.invalid"}
    assert "full: the disk is full" in said.err
    assert "nowhere.invalid: " in said.err
    for path in (*(nodes[name].home / "model.pth" for name in ("one", "two", "slow")), nodes["one"].home / "more"):
        there = path / "model.pth" if path.is_dir() else path
        assert there.read_bytes() == (home / "model.pth").read_bytes()


def test_one_that_is_interrupted_goes_on_where_it_is_needed(
    cluster: tuple[dict[str, EmbeddedNode], list[str]], rrmove: Callable[..., Said], home: Path
) -> None:
    nodes, access = cluster
    source = home / "large.pth"
    source.write_bytes(os.urandom(8_000_000))
    nodes["slow"].faults = Faults(rate=1.5e6)
    targets = ["one", "two", "slow"]
    argv = [sys.executable, "-m", "rrmove", "auto", "large.pth", *targets, "--json", "--only", "chunked", *access]
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        there = 0
        for line in process.stdout:
            event = json.loads(line)
            there += event["event"] == "finished" and event["ok"]
            if there == 2 and event["event"] == "progressed" and event["durable"] > 3_000_000:
                break
        process.send_signal(signal.SIGINT)
        last = json.loads(process.stdout.read().splitlines()[-1])
        assert process.wait(20) == 130
    assert [each["ok"] for each in last["nodes"]] == [True, True, False]
    assert not (nodes["slow"].home / "large.pth").exists()
    nodes["slow"].faults = Faults()
    again = lines(rrmove("auto", "large.pth", *targets, "--json", "--only", "chunked", *access).out)[-1]
    assert again["ok"]
    assert [each["bytes_sent"] for each in again["nodes"][:2]] == [0, 0]
    assert again["nodes"][2]["bytes_reused"] > 0
    assert again["nodes"][2]["bytes_sent"] + again["nodes"][2]["bytes_reused"] < 8_800_000
    assert (nodes["slow"].home / "large.pth").read_bytes() == source.read_bytes()
