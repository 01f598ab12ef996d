"""Who wants to watch a move, or to adjust its plan: pluggy's one place.

A plugin registers a module, an object or a class in the group `rrmove.hooks`, with functions of
these names that are marked with `rrmove.hookimpl`:

    rrmove_event(event)                  called for every event, in order
    rrmove_plan(request, facts, plan)    give another plan, or None to leave it

Each may take fewer of its arguments. They are plain functions, called between two steps of the
move: one that takes its time holds the move up.
"""

from __future__ import annotations

import inspect
import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from rrmove.discovery import allowed, registered
from rrmove.guests import quiet_stdout
from rrmove.model import Plan, Refusal, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pluggy import HookImpl, HookimplMarker, PluginManager

    from rrmove.events import Event
    from rrmove.model import Request
    from rrmove.probe import Facts

    hookimpl: HookimplMarker

GROUP = "rrmove.hooks"
_PROJECT = "rrmove"  # the marker and the specifications find each other by it


def __getattr__(name: str) -> Any:
    # pluggy takes 16 ms to import, and only who writes or has hooks needs it.
    if name == "hookimpl":
        from pluggy import HookimplMarker

        return HookimplMarker(_PROJECT)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, slots=True)
class _Hook:
    """One function of one plugin."""

    plugin: str
    function: Callable[..., object]
    arguments: tuple[str, ...]

    def __call__(self, **offered: object) -> object:
        return self.function(*(offered[name] for name in self.arguments))


class Hooks:
    """The hooks that were loaded; what goes wrong in one is reported once, and goes no further."""

    def __init__(
        self,
        watching: Iterable[_Hook] = (),
        adjusting: Iterable[_Hook] = (),
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._watching = tuple(watching)
        self._adjusting = tuple(adjusting)
        self._report = report or _to_stderr
        self._reported: set[_Hook] = set()

    def emit(self, event: Event) -> None:
        """Show an event to everyone who watches. Raises nothing."""
        for hook in self._watching:
            self._call(hook, event=event)

    def adjust(self, request: Request, facts: Facts, plan: Plan) -> Plan:
        """Let everyone adjust the plan in turn, each on top of the last. Raises nothing.

        A plan may have fewer steps than it had, in another order. One that has others is ignored;
        a step that was dropped becomes a refusal that names the plugin.
        """
        for hook in self._adjusting:
            answer = self._call(hook, request=request, facts=facts, plan=plan)
            if answer is None:
                continue
            problem = _unfit(answer, plan)
            if problem is None:
                plan = _accounted(cast("Plan", answer), plan, hook.plugin)
            else:
                self._complain(hook, f"its plan is ignored, as {problem}")
        return plan

    def _call(self, hook: _Hook, **offered: object) -> object:
        try:
            return hook(**offered)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a watcher must not end a move
            self._complain(hook, f"it failed and is ignored: {type(error).__name__}: {error}")
            return None

    def _complain(self, hook: _Hook, what: str) -> None:
        if hook not in self._reported:
            self._reported.add(hook)
            name = getattr(hook.function, "__name__", "hook")
            self._report(f"{name} of {hook.plugin}: {what}")


def load_hooks(
    extra: Iterable[object] = (),
    *,
    report: Callable[[str], None] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Hooks:
    """Load all hooks: those of installed distributions, and the objects in `extra`.

    Raises nothing; what cannot be loaded is told to `report`, line by line (default: stderr).
    $RRMOVE_PLUGINS holds here too. Without any hook pluggy is not even imported.
    """
    say = report or _to_stderr
    found = [each for each in registered(GROUP) if allowed(each, environ)]
    guests: dict[str, object] = {}
    for each in found:
        try:
            with quiet_stdout():
                loaded = each.entry_point.load()
                guests[f"{each.distribution}:{each.name}"] = _instance(loaded)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and worse, too: it is a guest
            said = f"cannot be loaded: {type(error).__name__}: {error}"
            say(f"hooks {each.name} of {each.distribution} {said}. RRMOVE_PLUGINS=none is without")
    for number, plugin in enumerate(extra, start=1):
        name = getattr(plugin, "__name__", type(plugin).__name__)
        guests[name if name not in guests else f"{name} ({number})"] = plugin
    if not guests:
        return Hooks(report=say)
    manager = _specified()
    for name, plugin in guests.items():
        _register(manager, name, plugin, say)
    return Hooks(_ordered(manager, "rrmove_event"), _ordered(manager, "rrmove_plan"), report=say)


def _instance(loaded: Any) -> object:
    return loaded() if isinstance(loaded, type) else loaded


def _specified() -> PluginManager:
    import pluggy

    hookspec = pluggy.HookspecMarker(_PROJECT)

    class Specifications:
        @hookspec
        def rrmove_event(self, event: Event) -> None:
            """See an event."""

        @hookspec
        def rrmove_plan(self, request: Request, facts: Facts, plan: Plan) -> Plan | None:
            """Give another plan, or None to leave it."""

    manager = pluggy.PluginManager(_PROJECT)
    manager.add_hookspecs(Specifications)
    return manager


def _register(manager: PluginManager, name: str, plugin: object, say: Callable[[str], None]) -> None:
    try:
        manager.register(plugin, name)
        problem = next(_complaints(manager, plugin), None)
    except Exception as error:  # noqa: BLE001 - pluggy looks at every attribute: any may raise
        problem = str(error)
    if problem is not None:
        if manager.is_registered(plugin):
            manager.unregister(plugin)
        say(f"hooks of {name} are ignored: {problem}")


def _complaints(manager: PluginManager, plugin: object) -> Iterator[str]:
    callers = manager.get_hookcallers(plugin)
    if not callers:
        yield "nothing in it is marked with rrmove.hookimpl"
    for caller in callers or ():
        if not caller.has_spec():
            yield f"there is no hook {caller.name}"
        if not all(_plain(each) for each in caller.get_hookimpls() if each.plugin is plugin):
            yield f"{caller.name} has to be a plain function"


def _plain(implementation: HookImpl) -> bool:
    # Each is called by itself, so that one which raises cannot keep an event from the next: there
    # is nothing that a wrapper could wrap, and nobody who would await a coroutine.
    odd = inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction
    return not any(is_odd(implementation.function) for is_odd in odd)


def _ordered(manager: PluginManager, name: str) -> Iterator[_Hook]:
    # pluggy keeps them in the order of registration and calls them from the end.
    for each in reversed(getattr(manager.hook, name).get_hookimpls()):
        yield _Hook(each.plugin_name, each.function, each.argnames)


def _unfit(answer: object, plan: Plan) -> str | None:
    if not isinstance(answer, Plan):
        return f"it is no Plan but {answer!r}"
    parts = ((answer.steps, Step), (answer.refusals, Refusal))
    if not all(isinstance(part, tuple) and all(isinstance(each, kind) for each in part) for part, kind in parts):
        return "its steps and refusals are no tuples of Step and Refusal"
    names = [step.transport for step in answer.steps]
    invented = set(names) - {step.transport for step in plan.steps}
    if invented:
        return f"it has steps that were not there: {', '.join(sorted(invented))}"
    return "it has a step twice" if len(names) != len(set(names)) else None


def _accounted(answer: Plan, plan: Plan, plugin: str) -> Plan:
    kept = {step.transport for step in answer.steps}
    reasons = {refusal.transport: refusal for refusal in answer.refusals}
    dropped = tuple(
        reasons.get(step.transport) or Refusal(step.transport, f"dropped by the hook {plugin}")
        for step in plan.steps
        if step.transport not in kept
    )
    return replace(answer, refusals=(*plan.refusals, *dropped))


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"rrmove: {text}\n")
