"""plan, probe, plugins, nodes, clean, completion: what they print, and that they move nothing."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rrmove.discovery import PluginRow, Registry
from rrmove.errors import Fatal
from rrmove.knowledge import Knowledge
from rrmove.model import Estimate, Node, Plan, Refusal, Request, Source, Step
from rrmove.probe import Facts
from tests.cli.scripted import replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.scripted import Said

PLAN = Plan(
    (
        Step(
            "chunked",
            Estimate(52.1, (("connect", 1.3), ("send", 56.0), ("2 losses", 0.5), ("before", -5.2))),
            "exact resume",
        ),
        Step("scp", Estimate(math.inf, (), "it does not fit into a connection's life"), "last resort"),
    ),
    (Refusal("http", "port 8780 is filtered"),),
)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Let `preview()` answer with what the test sets."""
    seen = SimpleNamespace(plan=PLAN, missing=400_000, knowledge=Knowledge(history=(("chunked", 50.0, 52.0),)))

    async def preview(source: Path, target: Node, **_: object) -> SimpleNamespace:
        seen.request = Request(source=Source.of(source), node=target, destination=target.destination or "")
        seen.digest = "sha256-tree:ab"
        return seen

    replace(monkeypatch, "rrmove.moving", preview=preview)
    return seen


def test_a_plan_shows_its_sums(rrmove: Callable[..., Said], plan: SimpleNamespace) -> None:
    said = rrmove("plan", "model.pth", "gpu-3")
    assert (said.code, said.err) == (0, "")
    assert plan.missing == 400_000
    assert said.out.splitlines() == [
        "model.pth -> gpu-3:/data: 400 kB of 1.00 MB to send, the rest is there",
        "",
        "RANK  TRANSPORT  EXPECTED  SUM                                                            REASON",
        "   1  chunked        52 s  1.3 s connect + 56 s send + 0.5 s for 2 losses - 5.2 s before  exact resume",
        "   2  scp           never  it does not fit into a connection's life                       last resort",
        "",
        "REFUSED  WHY",
        "http     port 8780 is filtered",
        "",
        "BEFORE   PREDICTED  TOOK  OFF BY",
        "chunked       50 s  52 s    +4 %",
    ]


def test_a_plan_in_json(rrmove: Callable[..., Said], plan: SimpleNamespace) -> None:
    line = json.loads(rrmove("plan", "model.pth", "gpu-3", "--json").out, parse_constant=pytest.fail)
    assert plan.missing == line["missing"]
    assert [(step["rank"], step["transport"], step["seconds"]) for step in line["steps"]] == [
        (1, "chunked", 52.1),
        (2, "scp", None),
    ]
    assert line["steps"][0]["terms"][0] == {"what": "connect", "seconds": 1.3}
    assert line["refusals"] == [{"transport": "http", "reason": "port 8780 is filtered"}]
    assert line["history"] == [{"transport": "chunked", "predicted": 50.0, "actual": 52.0}]


def test_a_plan_without_steps_exits_with_3(rrmove: Callable[..., Said], plan: SimpleNamespace) -> None:
    plan.plan = Plan((), PLAN.refusals)
    said = rrmove("plan", "model.pth", "gpu-3")
    assert said.code == 3
    assert "No transport can serve" in said.out
    assert "port 8780 is filtered" in said.out


@pytest.fixture
def care(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Let `probe_node()` and `clean()` answer; gpu-4 cannot be reached."""
    state = SimpleNamespace(at_once=0, most=0, removed=("/data/.a\nb.12.rrmove-part",), asked=[])

    async def probe_node(target: Node, **_: object) -> Facts:
        state.at_once += 1
        state.most = max(state.most, state.at_once)
        await asyncio.sleep(0.05)
        state.at_once -= 1
        if target.name == "gpu-4":
            raise Fatal("the login was refused", node="gpu-4", remedy="Try `ssh gpu-4` by hand")
        return Facts({"vendor": "an answer"})

    async def clean(target: Node, **options: Any) -> tuple[str, ...]:
        state.asked.append((target.name, options["older_than"], options["path"]))
        removed: tuple[str, ...] = state.removed
        return removed

    replace(monkeypatch, "rrmove.care", probe_node=probe_node, clean=clean)
    return state


def test_nodes_are_probed_at_once_and_one_that_is_lost_costs_only_itself(
    rrmove: Callable[..., Said], care: SimpleNamespace
) -> None:
    said = rrmove("probe", "@gpu", "gpu-3", "me@203.0.113.77")
    assert (said.code, care.most) == (1, 3)
    assert said.out.splitlines() == [
        "gpu-3",
        "  vendor  an answer",
        "",
        "203.0.113.77",
        "  vendor  an answer",
        "",
        "NOT REACHED  WHY",
        "gpu-4        the login was refused. Try `ssh gpu-4` by hand",
    ]


def test_probes_in_json(rrmove: Callable[..., Said], care: SimpleNamespace) -> None:
    lines = [json.loads(line) for line in rrmove("probe", "@gpu", "--json").out.splitlines()]
    assert care.most == 2
    assert lines == [
        {"node": "gpu-3", "ok": True, "facts": {"vendor": "an answer"}},
        {"node": "gpu-4", "ok": False, "error": "gpu-4: the login was refused. Try `ssh gpu-4` by hand"},
    ]


def test_clean_prints_what_was_removed(rrmove: Callable[..., Said], care: SimpleNamespace) -> None:
    said = rrmove("clean", "gpu-3:/scratch", "--older-than", "7d")
    assert said.out == "gpu-3:/data/.a\\nb.12.rrmove-part\n1 file removed\n"
    assert care.asked == [("gpu-3", 604800.0, "/scratch")]
    care.removed = ()
    assert "nothing to remove" in rrmove("clean", "gpu-3").out
    assert care.asked[-1] == ("gpu-3", 0.0, None)
    assert json.loads(rrmove("clean", "gpu-3", "--json").out) == {"node": "gpu-3", "removed": []}
    assert rrmove("clean", "@gpu").code == 2


def test_plugins_and_what_is_wrong_with_them(rrmove: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        PluginRow("chunked", "0.1.0", "rrmove", "ssh", "exact"),
        PluginRow("odd", "2.0", "rrmove-odd", problem="it cannot be imported", remedy="Ask\nits author", trace="T\nB"),
    )
    replace(monkeypatch, "rrmove.discovery", discover=lambda **_: Registry(rows=rows))
    assert rrmove("plugins").out.splitlines() == [
        "TRANSPORT  VERSION  DISTRIBUTION  ROUTE  RESUME",
        "chunked    0.1.0    rrmove        ssh    exact",
        "",
        "odd (rrmove-odd 2.0)  it cannot be imported",
        "    Ask",
        "    its author",
    ]
    assert rrmove("plugins", "-v").out.endswith("    T\n    B\n")
    assert json.loads(rrmove("plugins", "--json").out.splitlines()[1])["problem"] == "it cannot be imported"


def test_nodes(rrmove: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = rrmove("nodes").out.splitlines()
    assert table[0].split()[:2] == ["NODE", "HOST"]
    assert table[1].split()[:2] == ["gpu-3", "127.0.0.9"]
    assert rrmove("nodes", "--names").out == "gpu-3\ngpu-4\n"
    assert json.loads(rrmove("nodes", "--json").out.splitlines()[1])["tags"] == ["gpu", "solo"]
    assert "LIMIT" not in table[0]
    limited = tmp_path / "limited.toml"
    limited.write_text('[providers.p]\nlimit_rate = "2M"\n[nodes.a]\nprovider = "p"\n[nodes.b]\nlimit_rate = "1M"\n')
    monkeypatch.setenv("RRMOVE_NODES", str(limited))
    table = rrmove("nodes").out.splitlines()
    at = table[0].index("LIMIT")
    assert [line[at:].split("  ")[0] for line in table[1:3]] == ["2.00 MB/s (provider p)", "1.00 MB/s"]
    assert json.loads(rrmove("nodes", "--json").out.splitlines()[0])["limits"] == [{"scope": "provider p", "rate": 2e6}]
    empty = tmp_path / "empty.toml"
    empty.touch()
    monkeypatch.setenv("RRMOVE_NODES", str(empty))
    assert "user@host always works" in rrmove("nodes").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_knows_commands_options_and_nodes(shell: str, rrmove: Callable[..., Said]) -> None:
    script = rrmove("completion", shell).out
    assert all(word in script for word in ("auto", "completion", "limit-rate", "rrmove nodes --names"))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
