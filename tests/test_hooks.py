"""Those who watch a move or adjust its plan, and what becomes of those who do it badly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from pluggy import HookimplMarker

from rrmove import hooks
from rrmove.events import Verified, Waiting
from rrmove.hooks import Hooks, load_hooks
from rrmove.model import Estimate, Node, Plan, Refusal, Request, Source, Step
from rrmove.probe import Facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from rrmove.events import Event

CORE = Path(__file__).parents[1] / "core"
EVENT = Verified("gpu1", "sha256:00")
STEPS = tuple(Step(name, Estimate(1.0), "because") for name in ("chunked", "rsync", "scp"))
PLAN = Plan(STEPS, (Refusal("http", "port 8780 is filtered"),))

hookimpl = hooks.hookimpl


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    path = tmp_path / "model.pth"
    path.write_bytes(b"x")
    return Request(source=Source.of(path), node=Node(name="gpu1"))


class Watcher:
    def __init__(self) -> None:
        self.seen: list[Event] = []

    @hookimpl
    def rrmove_event(self, event: Event) -> None:
        self.seen.append(event)


def adjuster(answer: Callable[[Plan], Any]) -> object:
    class Adjuster:
        @hookimpl
        def rrmove_plan(self, plan: Plan) -> Any:
            return answer(plan)

    return Adjuster()


def loaded(*extra: object) -> tuple[Hooks, list[str]]:
    said: list[str] = []
    return load_hooks(extra, report=said.append, environ={"RRMOVE_PLUGINS": "none"}), said


def test_the_marker_is_pluggys() -> None:
    assert isinstance(hooks.hookimpl, HookimplMarker)
    with pytest.raises(AttributeError):
        _ = hooks.hookspec


def test_without_hooks_nothing_happens(request_: Request) -> None:
    quiet, said = loaded()
    quiet.emit(EVENT)
    assert quiet.adjust(request_, Facts(), PLAN) is PLAN
    assert said == []


def test_all_who_watch_see_every_event_in_order() -> None:
    one, two = Watcher(), Watcher()
    watched, said = loaded(one, two)
    events: list[Event] = [Waiting("gpu1", 1.0, "backoff"), EVENT]
    for event in events:
        watched.emit(event)
    assert one.seen == two.seen == events
    assert said == []


@pytest.mark.parametrize("error", [RuntimeError("no network"), SystemExit(1)])
def test_one_who_fails_is_reported_once_and_keeps_nothing_from_the_others(error: BaseException) -> None:
    class Failing:
        @hookimpl(tryfirst=True)
        def rrmove_event(self) -> None:
            raise error

    watcher = Watcher()
    watched, said = loaded(watcher, Failing())
    watched.emit(EVENT)
    watched.emit(EVENT)
    assert watcher.seen == [EVENT, EVENT]
    (text,) = said
    assert "rrmove_event of Failing" in text
    assert type(error).__name__ in text


def test_the_users_interrupt_is_no_failure_of_a_hook() -> None:
    class Interrupted:
        @hookimpl
        def rrmove_event(self) -> None:
            raise KeyboardInterrupt

    watched, _ = loaded(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        watched.emit(EVENT)


def test_steps_can_be_put_in_another_order(request_: Request) -> None:
    adjusting, said = loaded(adjuster(lambda plan: Plan(plan.steps[::-1], plan.refusals)))
    assert adjusting.adjust(request_, Facts(), PLAN) == Plan(STEPS[::-1], PLAN.refusals)
    assert said == []


def test_a_dropped_step_becomes_a_refusal(request_: Request) -> None:
    adjusting, _ = loaded(adjuster(lambda plan: Plan(plan.steps[:1])))
    plan = adjusting.adjust(request_, Facts(), PLAN)
    assert plan.steps == STEPS[:1]
    dropped = "dropped by the hook Adjuster"
    assert plan.refusals == (*PLAN.refusals, Refusal("rsync", dropped), Refusal("scp", dropped))


def test_the_hook_may_say_why_it_drops_a_step(request_: Request) -> None:
    adjusting, _ = loaded(adjuster(lambda plan: Plan(plan.steps[:2], (Refusal("scp", "policy"),))))
    assert adjusting.adjust(request_, Facts(), PLAN).refusals == (*PLAN.refusals, Refusal("scp", "policy"))


def test_each_adjusts_what_the_last_one_left(request_: Request) -> None:
    drop = adjuster(lambda plan: Plan(plan.steps[1:]))
    plan = loaded(drop, adjuster(lambda _: None), adjuster(lambda plan: Plan(plan.steps[1:])))[0].adjust(
        request_, Facts(), PLAN
    )
    assert plan.steps == STEPS[2:]


@pytest.mark.parametrize(
    ("answer", "said_of_it"),
    [
        (lambda plan: Plan((*plan.steps, Step("teleport", Estimate(0.0), "fast"))), "not there: teleport"),
        (lambda plan: Plan((Step("http", Estimate(0.0), "refused, but"), *plan.steps)), "not there: http"),
        (lambda plan: Plan(plan.steps + plan.steps), "a step twice"),
        (lambda plan: list(plan.steps), "no Plan"),
        (lambda _: 1 / 0, "ZeroDivisionError"),
        (lambda _: Plan(cast("Any", 7)), "no tuples"),
        (lambda plan: Plan(plan.steps, cast("Any", ("scp",))), "no tuples"),
        (lambda _: Plan(cast("Any", ("scp",))), "no tuples"),
    ],
)
def test_a_bad_plan_is_ignored(request_: Request, answer: Callable[[Plan], Any], said_of_it: str) -> None:
    adjusting, said = loaded(adjuster(answer))
    assert adjusting.adjust(request_, Facts(), PLAN) == PLAN
    assert adjusting.adjust(request_, Facts(), PLAN) == PLAN
    (text,) = said
    assert said_of_it in text


class _Async:
    @hookimpl
    async def rrmove_event(self, event: Event) -> None:
        pass


class _Wrapping:
    @hookimpl(wrapper=True)
    def rrmove_plan(self) -> Any:
        return (yield)


class _Misspelt:
    @hookimpl
    def rrmove_evnt(self, event: Event) -> None:
        pass


class _Greedy:
    @hookimpl
    def rrmove_event(self, event: Event, node: Node) -> None:
        pass


class _Unmarked:
    def rrmove_event(self, event: Event) -> None:
        pass


@pytest.mark.parametrize(
    ("plugin", "said_of_it"),
    [
        (_Async(), "plain function"),
        (_Wrapping(), "plain function"),
        (_Misspelt(), "no hook rrmove_evnt"),
        (_Greedy(), "node"),
        (_Unmarked(), "marked"),
    ],
)
def test_what_is_no_hook_is_reported_and_left_out(plugin: object, said_of_it: str) -> None:
    watcher = Watcher()
    watched, said = loaded(plugin, watcher)
    watched.emit(EVENT)
    assert watcher.seen == [EVENT]
    (text,) = said
    assert said_of_it in text


def test_reports_go_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    load_hooks([_Misspelt()], environ={"RRMOVE_PLUGINS": "none"})
    assert "there is no hook rrmove_evnt" in capsys.readouterr().err


CHILD = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from rrmove.events import Verified
from rrmove.hooks import load_hooks
said = []
hooks = load_hooks(report=said.append, environ=json.loads(sys.argv[2]))
hooks.emit(Verified("n", "d"))
seen = getattr(sys, "seen", [])
json.dump({"said": said, "seen": seen, "pluggy": "pluggy" in sys.modules}, sys.stdout)
"""
SEEING = """
import sys
from rrmove.hooks import hookimpl
print("loud")
@hookimpl
def rrmove_event(event):
    sys.seen = [*getattr(sys, "seen", []), __name__]
class Seeing:
    @hookimpl
    def rrmove_event(self, event):
        sys.seen = [*getattr(sys, "seen", []), "class"]
"""


def run(tmp_path: Path, points: dict[str, str], **environ: str) -> dict[str, Any]:
    info = tmp_path / "hooked-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hooked\nVersion: 1\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[rrmove.hooks]\n{lines}")
    (tmp_path / "seeing_module.py").write_text(SEEING)
    (tmp_path / "exiting_module.py").write_text("raise SystemExit('no')")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([str(tmp_path), str(CORE)]), json.dumps(environ)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_installed_hooks_are_modules_or_classes(tmp_path: Path) -> None:
    found = run(tmp_path, {"a": "seeing_module", "b": "seeing_module:Seeing"})
    assert (found["said"], sorted(found["seen"])) == ([], ["class", "seeing_module"])


def test_an_installed_hook_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    found = run(tmp_path, {"a": "exiting_module", "b": "seeing_module", "c": "missing_module"})
    assert found["seen"] == ["seeing_module"]
    assert ["SystemExit" in found["said"][0], "missing_module" in found["said"][1]] == [True, True]


def test_hooks_can_be_switched_off_and_then_pluggy_is_not_imported(tmp_path: Path) -> None:
    found = run(tmp_path, {"a": "seeing_module"}, RRMOVE_PLUGINS="none")
    assert found == {"said": [], "seen": [], "pluggy": False}
