"""Which transports exist, which could not be loaded, and why: stevedore's one place."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import traceback
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from rrmove.errors import PluginError, UsageError
from rrmove.fitness import made, shared_settings
from rrmove.guests import IMPORT_TIME, Guest, load, quiet_stdout
from rrmove.model import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from importlib.metadata import EntryPoint

    from rrmove.model import Resume, Route
    from rrmove.probe import Probe
    from rrmove.transport import Transport

    _Made = tuple[Transport | None, str | None]

GROUP = "rrmove.transports"
OWN = "rrmove"  # the distribution whose transports are built in


@dataclass(frozen=True, slots=True)
class PluginRow:
    """One row of `rrmove plugins`.

    `problem` says why it is not used, None where it is; `remedy` what to do, also about one that
    is used but misbehaves. `route` and `resume` are None where it could not be asked. `trace` is
    the traceback of what went wrong, if it was an exception.
    """

    name: str
    version: str
    distribution: str
    route: Route | None = None
    resume: Resume | None = None
    problem: str | None = None
    remedy: str | None = None
    trace: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Registry:
    """The transports that can be used, by name, and a row for each that was found; `own` are rrmove's."""

    transports: Mapping[str, Transport] = field(default_factory=lambda: MappingProxyType({}))
    rows: tuple[PluginRow, ...] = ()
    own: frozenset[str] = frozenset()

    needs: Mapping[str, tuple[Probe[Any], ...]] = field(init=False)

    def __post_init__(self) -> None:
        # Read once, as it was when it was found fit: what it is later is a stranger's business.
        needs = {name: transport.needs for name, transport in self.transports.items()}
        object.__setattr__(self, "needs", MappingProxyType(needs))

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Who cannot take part in any plan, and why; one for each name that has no transport."""
        bad = {row.name: row.problem for row in self.rows if row.name not in self.transports}
        return tuple(Refusal(name, problem or "it is not loaded") for name, problem in bad.items())


@dataclass(frozen=True, slots=True)
class Registered:
    """An entry point as a distribution registers it; nothing of it is imported yet."""

    name: str
    entry_point: EntryPoint
    distribution: str
    version: str

    @property
    def own(self) -> bool:
        """Whether it is rrmove's own."""
        return _canonical(self.distribution) == OWN


def discover(
    *,
    environ: Mapping[str, str] = os.environ,
    extra: Iterable[object] = (),
    seconds: float = IMPORT_TIME,
) -> Registry:
    """Load every registered transport; takes about 0.1 s, most of it for metadata and imports.

    Raises nothing of theirs: whatever is wrong with a plugin becomes its row's problem, with a
    remedy. What is built in is loaded first; the others have `seconds` for it, all together, and
    who is late is left out. What plugins print while they are imported goes to stderr.
    $RRMOVE_PLUGINS says which of those that are not built in may be loaded: `none`, or names of
    transports or distributions; all if unset. A repeat looks again, and imports nothing twice.

    `extra` are transports that nobody has installed: classes, objects, or paths of Python files.
    They come before installed ones of the same name. Raises PluginError where one is unfit.
    """
    found = registered(GROUP)
    brought = tuple(itertools.chain.from_iterable(map(brought_by, extra)))
    taken = {transport.name for transport in brought}
    wanted = [each for each in found if allowed(each, environ) and (each.own or each.name not in taken)]
    problems = {each: _unwanted(each, wanted, taken) for each in found}
    works = {each: partial(_made, each) for each in found if problems[each] is None}
    loaded = {each: _inline(work, each.name) for each, work in works.items() if each.own}
    loaded |= load({each: work for each, work in works.items() if not each.own}, seconds)
    transports: dict[str, Transport] = {}
    rows: dict[Registered, PluginRow] = {}
    for each in sorted(found, key=lambda each: not each.own):
        row = PluginRow(each.name, each.version, each.distribution)
        unwanted = problems[each]
        if unwanted is not None:
            rows[each] = replace(row, problem=unwanted[0], remedy=unwanted[1])
            continue
        rows[each], transport = _came_of(each, row, loaded[each], transports, seconds)
        if transport is not None:
            transports[each.name] = transport
    own = frozenset(each.name for each in rows if each.own and each.name in transports)
    mine = _settle_in(brought, transports, own)
    return Registry(MappingProxyType(transports), (*(rows[each] for each in found), *mine), own)


def registered(group: str) -> tuple[Registered, ...]:
    """List what the installed distributions register under `group`, sorted by name.

    Imports none of it. A distribution that is on sys.path twice counts once, as does the same
    line twice in one distribution; one whose metadata cannot be read is passed over, as its
    neighbours must not suffer for it.
    """
    from importlib import metadata

    names: dict[str, str] = {}
    for distribution in metadata.distributions():
        with contextlib.suppress(Exception):
            # Only few register anything here: parsing the others' files would be most of the cost.
            if group in (distribution.read_text("entry_points.txt") or ""):
                name = distribution.metadata["Name"]
                names.setdefault(_canonical(name), name)
    found: dict[tuple[str, str, str], Registered] = {}
    for name in names.values():
        with contextlib.suppress(Exception):
            # The first on sys.path is the one that an import gets.
            distribution = metadata.distribution(name)
            for entry in distribution.entry_points:
                if entry.group == group:
                    each = Registered(entry.name, entry, name, distribution.version or "unknown")
                    found[entry.name, _canonical(name), entry.value] = each
    return tuple(found[key] for key in sorted(found))


def allowed(each: Registered, environ: Mapping[str, str]) -> bool:
    """Tell whether $RRMOVE_PLUGINS lets this one in; what is built in always may."""
    setting = environ.get("RRMOVE_PLUGINS", "").strip()
    if each.own or not setting:
        return True
    words = {_canonical(word) for word in setting.split(",")}
    return bool(words & {_canonical(each.name), _canonical(each.distribution)})


def _made(each: Registered) -> tuple[Transport | None, str | None]:
    return made(_imported(each.entry_point), each.name)


def _inline(work: Callable[[], _Made], name: str) -> Guest[_Made]:
    guest = Guest(work, name)
    with quiet_stdout() as spoke:
        guest.run()
    guest.spoke = spoke()
    if isinstance(guest.error, KeyboardInterrupt):
        raise guest.error
    return guest


def _came_of(
    each: Registered, row: PluginRow, guest: Guest[_Made], others: Mapping[str, Transport], seconds: float
) -> tuple[PluginRow, Transport | None]:
    """Say what came of loading one."""
    if not guest.done:
        problem = f"its import takes longer than {seconds:g} s"
        remedy = f"The author of {each.distribution} should import what is slow in send(). {_without(each)}"
        return replace(row, problem=problem, remedy=remedy), None
    if guest.error is not None:
        return _failed(row, each, guest.error), None
    transport, unfit = cast("_Made", guest.result)
    fit = cast("Transport", transport)
    unfit = unfit or shared_settings(fit, others)
    if unfit is not None:
        remedy = _outdated(each) if "api_version" in unfit else _author(each)
        return replace(row, problem=unfit, remedy=remedy), None
    row = replace(row, route=fit.capabilities.route, resume=fit.capabilities.resume)
    if guest.spoke:
        row = replace(row, remedy=f"It prints to stdout while it is loaded: tell the author of {each.distribution}")
    return row, fit


def brought_by(extra: object) -> Iterator[Transport]:
    """Give the transport that somebody brings along, or those of a Python file. Raises PluginError."""
    if isinstance(extra, str | Path):
        yield from _from_file(Path(extra))
        return
    name = getattr(extra, "name", None) or getattr(extra, "__name__", type(extra).__name__)
    yield _fit(extra, str(name))


def _from_file(path: Path) -> Iterator[Transport]:
    from importlib.util import module_from_spec, spec_from_file_location

    name = f"rrmove_plugin_{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}"
    spec = spec_from_file_location(name, path) if path.suffix == ".py" else None
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(
            f"there is no Python file {str(path)!r}", remedy="Name the file that has the transport's class"
        )
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    with quiet_stdout():
        try:
            spec.loader.exec_module(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            raise PluginError(f"{str(path)!r} cannot be loaded: {said}") from error
    classes = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == name and callable(getattr(each, "send", None))
    ]
    if not classes:
        raise PluginError(f"{str(path)!r} has no class with a send() method", remedy="See docs/write-a-transport.md")
    for each in classes:
        yield _fit(each, str(path))


def _fit(plugin: object, where: str) -> Transport:
    with quiet_stdout():
        try:
            transport, problem = made(plugin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            raise PluginError(f"the transport {where!r} cannot be made: {said}") from error
    if transport is None:
        raise PluginError(f"the transport {where!r} is unfit: {problem}", remedy="See docs/transports.md")
    return transport


def _settle_in(brought: Iterable[Transport], transports: dict[str, Transport], own: frozenset[str]) -> list[PluginRow]:
    """Let those that were brought along take their places. Raises PluginError where there is none."""
    rows = []
    for each in brought:
        if each.name in own and type(each) is not type(transports[each.name]):
            raise PluginError(f"the name {each.name!r} is that of a built-in transport", remedy="Choose another name")
        transports.pop(each.name, None)
        problem = shared_settings(each, transports)
        if problem:
            raise PluginError(f"the transport {each.name!r} is unfit: {problem}", remedy="Give it a class of its own")
        transports[each.name] = each
        where = type(each).__module__
        rows.append(PluginRow(each.name, "", where, each.capabilities.route, each.capabilities.resume))
    return rows


def _unwanted(each: Registered, wanted: Sequence[Registered], taken: AbstractSet[str]) -> tuple[str, str] | None:
    """Say why this one is not even loaded, and what to do about it; None where it is."""
    if each.name in taken and not each.own:
        return "another transport of that name was brought along", "Leave that one out to use what is installed"
    if each not in wanted:
        return "it is switched off by $RRMOVE_PLUGINS", f"Unset RRMOVE_PLUGINS, or add {each.name} to it"
    rivals = [other for other in wanted if other.name == each.name and other is not each]
    if not rivals or (each.own and not any(rival.own for rival in rivals)):
        return None
    return _contested(each, rivals)


def _imported(entry_point: EntryPoint) -> Any:
    from stevedore.extension import ExtensionManager

    class One(ExtensionManager[Any]):
        """Loads one entry point, the one that is meant.

        Left to itself, stevedore would take the whole group from a cache file whose time stamps
        have steps of two minutes (they are 32-bit floats), and stop at the first SystemExit.
        """

        def list_entry_points(self) -> list[EntryPoint]:
            return [entry_point]

    failures: list[BaseException] = []
    loaded = One(entry_point.group, on_load_failure_callback=lambda _, __, error: failures.append(error))
    if failures:
        raise failures[0]
    return loaded.extensions[0].plugin


def _contested(each: Registered, rivals: Sequence[Registered]) -> tuple[str, str]:
    name, distribution = each.name, each.distribution
    if any(rival.own for rival in rivals):
        return (
            f"the name {name!r} is that of a built-in transport, which is used",
            f"The author of {distribution} has to choose another name",
        )
    others = sorted({rival.distribution for rival in rivals} - {distribution})
    if not others:
        return (
            f"{distribution} registers the name {name!r} more than once",
            f"The author of {distribution} has to drop one of them",
        )
    return (
        f"the name {name!r} is registered by {' and '.join(others)} too; none of them is used",
        f"Uninstall one (`pip uninstall {others[0]}`), or choose with RRMOVE_PLUGINS={distribution}",
    )


def _failed(row: PluginRow, each: Registered, error: BaseException) -> PluginRow:
    trace = "".join(traceback.format_exception(error))
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    remedy = _author(each)
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        ours = each.entry_point.module.partition(".")[0]
        package = each.distribution if missing == ours else missing
        again = "--force-reinstall " if missing == ours else ""
        remedy = f"Try `{sys.executable} -m pip install {again}{package}`"
    elif isinstance(error, SystemExit):
        said = f"it ends the program while it is loaded (SystemExit {error.code!r})"
    return replace(row, problem=f"it cannot be loaded: {said}", remedy=remedy, trace=trace)


def _outdated(each: Registered) -> str:
    return f"Upgrade both: `{sys.executable} -m pip install --upgrade rrmove {each.distribution}`"


def _author(each: Registered) -> str:
    if each.own:
        return "Reinstall rrmove: `pip install --force-reinstall rrmove`"
    return f"Tell the author of {each.distribution}; {_without(each)}"


def _without(each: Registered) -> str:
    return f"`pip uninstall {each.distribution}` or RRMOVE_PLUGINS=none is without it"


def _canonical(name: str) -> str:
    # PEP 503: `-`, `_` and `.` in names of distributions are one.
    return re.sub(r"[-_.]+", "-", name.strip().lower())
