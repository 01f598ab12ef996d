"""Who wants to watch a move, adjust its plan, name nodes, or judge files: pluggy's one place.

A plugin registers a module, an object or a class in the group `rrmove.hooks`, with functions of
these names that are marked with `rrmove.hookimpl`:

    rrmove_event(event)                  called for every event, in order
    rrmove_plan(request, facts, plan)    give another plan, or None to leave it
    rrmove_nodes()                       give nodes, for names and tags that no file has
    rrmove_addresses(node)               give further addresses of a node
    rrmove_prepare(source)               make a file ready to be read; give a reason to turn it down
    rrmove_validate(source)              judge a file; give a reason to turn it down

Each may take fewer of its arguments. They are plain functions. The first two are called between
two steps of the move: one that takes its time holds the move up. The others run in threads of
their own, and for a limited time.

A file that somebody turns down is not committed: RejectedError says who did it and why. One that
cannot judge, because it raises or takes too long, turns the file down as well. `rrmove_prepare`
comes before the file is hashed; `rrmove_validate` runs while it is sent, and no file takes its
name on the node before every verdict is there. It judges the local file: what is committed has
the same bytes, verified. What is behind a URL is not judged: its bytes are never here. None of them
can make a success of anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from rrmove.discovery import allowed, registered
from rrmove.errors import RejectedError
from rrmove.guests import load, quiet_stdout
from rrmove.model import Address, Node, Plan, Refusal, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pluggy import HookImpl, HookimplMarker, PluginManager

    from rrmove.events import Event
    from rrmove.model import Request, Source
    from rrmove.probe import Facts

    hookimpl: HookimplMarker

GROUP = "rrmove.hooks"
NAMES = ("rrmove_event", "rrmove_plan", "rrmove_nodes", "rrmove_addresses", "rrmove_prepare", "rrmove_validate")
_PROJECT = "rrmove"  # the marker and the specifications find each other by it
# Chosen: `tailscale status` takes 20 ms, an HTTP inventory perhaps a second.
ANSWER_TIME = 3.0  # s for nodes and addresses, all plugins together
# Chosen: at this rate a slow disk is read, and SQLite's integrity_check is several times quicker.
JUDGING_TIME, JUDGING_RATE = 60.0, 10e6  # s, and for the file's bytes this many a second besides


def __getattr__(name: str) -> Any:
    # pluggy takes 16 ms to import, and only who writes or has hooks needs it.
    if name == "hookimpl":
        from pluggy import HookimplMarker

        return HookimplMarker(_PROJECT)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_Outcome = tuple[bool, BaseException | None, Any]  # whether foreign work ended, its error, its result


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
        hooks: Mapping[str, Sequence[_Hook]] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._hooks = hooks or {}
        self._watching = self._of("rrmove_event")
        self._adjusting = self._of("rrmove_plan")
        self._report = report or _to_stderr
        self._reported: set[_Hook] = set()

    def _of(self, name: str) -> tuple[_Hook, ...]:
        return tuple(self._hooks.get(name, ()))

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

    def nodes(self) -> dict[str, tuple[Node, str]]:
        """Ask everyone who knows nodes; gives them by name, each with its plugin. Raises nothing; blocks.

        Of two with one name the first counts. What is no Node, or comes too late, is reported and left out.
        """
        found: dict[str, tuple[Node, str]] = {}
        hooks = self._of("rrmove_nodes")
        for hook, guest in load({hook: partial(_list, hook) for hook in hooks}, ANSWER_TIME).items():
            for node in self._came(hook, (guest.done, guest.error, guest.result), Node):
                found.setdefault(node.name, (node, hook.plugin))
        return found

    async def addressed(self, node: Node) -> Node:
        """Ask everyone for further addresses of a node, and give it with them. Raises nothing."""
        addresses = dict.fromkeys(node.addresses)
        hooks = self._of("rrmove_addresses")
        asked = (_aside(partial(_list, hook, node=node), ANSWER_TIME) for hook in hooks)
        for hook, outcome in zip(hooks, await asyncio.gather(*asked), strict=True):
            addresses |= dict.fromkeys(self._came(hook, outcome, Address))
        return node if len(addresses) == len(node.addresses) else replace(node, addresses=tuple(addresses))

    @property
    def preparing(self) -> bool:
        """Whether anyone wants to see files before they are read."""
        return bool(self._of("rrmove_prepare"))

    async def prepare(self, source: Source) -> None:
        """Have everyone make a file ready, one after the other. Raises RejectedError."""
        for hook in self._of("rrmove_prepare"):
            await _judged(hook, source)

    async def validate(self, source: Source) -> None:
        """Have everyone judge a file, one after the other. Raises RejectedError."""
        for hook in self._of("rrmove_validate"):
            await _judged(hook, source)

    def _came(self, hook: _Hook, outcome: _Outcome, kind: type[Any]) -> list[Any]:
        """Give what an answer has of a kind; complain of the rest."""
        done, error, answer = outcome
        if not done:
            self._complain(hook, f"it did not answer within {ANSWER_TIME:g} s and is ignored")
        elif error is not None:
            self._complain(hook, f"it failed and is ignored: {type(error).__name__}: {error}")
        elif answer is not None:
            given = cast("list[object]", answer)
            odd = [each for each in given if not isinstance(each, kind)]
            if odd:
                self._complain(hook, f"{odd[0]!r} is no {kind.__name__} and is ignored")
            return [each for each in given if isinstance(each, kind)]
        return []

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
    return Hooks({name: tuple(_ordered(manager, name)) for name in NAMES}, report=say)


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

        @hookspec
        def rrmove_nodes(self) -> Iterable[Node] | None:
            """Give nodes."""

        @hookspec
        def rrmove_addresses(self, node: Node) -> Iterable[Address] | None:
            """Give further addresses of a node."""

        @hookspec
        def rrmove_prepare(self, source: Source) -> str | None:
            """Make a file ready to be read; give a reason to turn it down."""

        @hookspec
        def rrmove_validate(self, source: Source) -> str | None:
            """Judge a file; give a reason to turn it down."""

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


def _list(hook: _Hook, **offered: object) -> list[object]:
    """Call a hook and go through what it gives, where both may fail or hang."""
    answer = hook(**offered)
    return [] if answer is None else list(cast("Iterable[object]", answer))


async def _aside(work: Callable[[], Any], seconds: float) -> _Outcome:
    """Do foreign work in a thread that nobody waits for longer; tells whether it ended, its error, its result."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[_Outcome] = loop.create_future()

    def settle(error: BaseException | None, result: object) -> None:
        if not ended.done():
            ended.set_result((True, error, result))

    def run() -> None:
        error, result = None, None
        try:
            result = work()
        except BaseException as caught:  # noqa: BLE001 - SystemExit and worse, too: it is a guest
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error, result)

    threading.Thread(target=run, name="hook", daemon=True).start()
    await asyncio.wait({ended}, timeout=seconds)
    return ended.result() if ended.done() else (False, None, None)


async def _judged(hook: _Hook, source: Source) -> None:
    """Have one hook judge a file. Raises RejectedError where it says no, or cannot say."""
    patience = JUDGING_TIME + source.size / JUDGING_RATE
    done, error, answer = await _aside(partial(hook, source=source), patience)
    name = getattr(hook.function, "__name__", "hook")
    which = f"{name} of {hook.plugin}"
    remedy = f"Mend the file, or leave {hook.plugin.partition(':')[0]} out: $RRMOVE_PLUGINS names who is let in"
    if not done:
        what = f"{which} did not judge {str(source.path)!r} within {patience:.0f} s"
    elif error is not None:
        what = f"{which} failed over {str(source.path)!r}: {type(error).__name__}: {error}"
    elif answer is None:
        return
    elif isinstance(answer, str) and answer:
        what = f"{which} turns {str(source.path)!r} down: {answer}"
    else:
        what = f"{which} answered {answer!r} over {str(source.path)!r}, no reason and no None"
    raise RejectedError(f"{what}; nothing was committed", remedy=remedy) from error


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
