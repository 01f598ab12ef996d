"""Which transports exist, which could not be loaded, and why: stevedore's one place."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
import traceback
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO, cast, get_args

from rrmove.model import Refusal, Resume, Route
from rrmove.plugin_settings import declared
from rrmove.probe import Probe
from rrmove.transport import API_VERSION, Capabilities, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from importlib.metadata import EntryPoint

GROUP = "rrmove.transports"
OWN = "rrmove"  # the distribution whose transports are built in
_ACCEPTED = tuple(version for version in (API_VERSION, API_VERSION - 1) if version >= 1)


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
    """The transports that can be used, by name, and a row for each that was found."""

    transports: Mapping[str, Transport] = field(default_factory=lambda: MappingProxyType({}))
    rows: tuple[PluginRow, ...] = ()

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


def discover(*, environ: Mapping[str, str] = os.environ) -> Registry:
    """Load every registered transport; takes about 0.1 s, most of it for metadata and imports.

    Raises nothing: whatever is wrong with a plugin becomes its row's problem, with a remedy. What
    plugins print while they are imported goes to stderr. $RRMOVE_PLUGINS says which of those that
    are not built in may be loaded: `none`, or names of transports or distributions; all if unset.
    A repeat looks again, and imports nothing twice.
    """
    transports: dict[str, Transport] = {}
    rows: list[PluginRow] = []
    found = registered(GROUP)
    wanted = [each for each in found if allowed(each, environ)]
    for each in found:
        row = PluginRow(each.name, each.version, each.distribution)
        rivals = [other for other in wanted if other.name == each.name and other is not each]
        if each not in wanted:
            row = replace(
                row,
                problem="it is switched off by $RRMOVE_PLUGINS",
                remedy=f"Unset RRMOVE_PLUGINS, or add {each.name} to it",
            )
        elif rivals and not (each.own and not any(rival.own for rival in rivals)):
            row = _contested(row, rivals)
        else:
            row, transport = _load(each, row)
            shared = _shared_settings(transport, transports)
            if shared is not None:
                row = replace(row, problem=f"its `settings` is the class of {shared}, too", remedy=_author(each))
            elif transport is not None:
                transports[each.name] = transport
        rows.append(row)
    return Registry(MappingProxyType(transports), tuple(rows))


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


@contextlib.contextmanager
def quiet_stdout() -> Iterator[Callable[[], bool]]:
    """Send what is printed to stdout to stderr; the function given tells whether anything was."""
    aside = _Aside(sys.stderr)
    with contextlib.redirect_stdout(cast("TextIO", aside)):
        yield lambda: aside.spoken


class _Aside:
    """A stream that passes everything on, and remembers that there was something."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.spoken = False

    def write(self, text: str) -> int:
        self.spoken = True
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            self.spoken = True
        return getattr(self._stream, name)


def _load(each: Registered, row: PluginRow) -> tuple[PluginRow, Transport | None]:
    with quiet_stdout() as printed:
        try:
            plugin = _imported(each.entry_point)
            problem = _unfit_class(plugin)
            transport = None if problem else plugin()
            problem = problem or next(_complaints(transport, each.name), None)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and worse, too: it is a guest
            return _failed(row, each, error), None
    if problem:
        remedy = _outdated(each) if "api_version" in problem else _author(each)
        return replace(row, problem=problem, remedy=remedy), None
    fit = cast("Transport", transport)
    capabilities = fit.capabilities
    row = replace(row, route=capabilities.route, resume=capabilities.resume)
    if printed():
        remedy = f"It prints to stdout while it is loaded: tell the author of {each.distribution}"
        row = replace(row, remedy=remedy)
    return row, fit


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


def _unfit_class(plugin: Any) -> str | None:
    if not isinstance(plugin, type):
        return f"its entry point names {_kind(plugin)}, where a class belongs"
    version = getattr(plugin, "api_version", None)
    if version not in _ACCEPTED or isinstance(version, bool):
        spoken = " and ".join(str(accepted) for accepted in _ACCEPTED)
        return f"its api_version is {version!r}; this rrmove speaks {spoken}"
    return None


def _complaints(transport: Any, name: str) -> Iterator[str]:
    """Say what is wrong with a transport; each check rests on those before it."""
    absent = object()
    for attribute in ("name", "needs", "capabilities", "refuse", "send"):
        if getattr(transport, attribute, absent) is absent:
            yield f"it has no attribute {attribute!r}"
    if transport.name != name:
        yield f"it calls itself {transport.name!r} and is registered as {name!r}"
    needs, capabilities = transport.needs, transport.capabilities
    if not isinstance(needs, tuple) or not all(isinstance(each, Probe) for each in needs):
        yield f"its `needs` is {_kind(needs)}, where a tuple of probes belongs"
    if not isinstance(capabilities, Capabilities):
        yield f"its `capabilities` is {_kind(capabilities)}, where Capabilities belong"
    if capabilities.resume not in get_args(Resume):
        yield f"its capabilities have resume={capabilities.resume!r}, which there is not"
    if capabilities.route not in get_args(Route):
        yield f"its capabilities have route={capabilities.route!r}, which there is not"
    yield from _of_settings(transport)
    if not callable(transport.refuse) or inspect.iscoroutinefunction(transport.refuse):
        yield "its `refuse` is no plain method"
    if not inspect.iscoroutinefunction(transport.send):
        yield "its `send` is no `async def` method"


def _of_settings(transport: Any) -> Iterator[str]:
    try:
        declared(transport)
    except TypeError as error:
        yield f"its `settings` {error}"


def _shared_settings(transport: Any, others: Mapping[str, Any]) -> str | None:
    """Name the transport that has the same class of settings: they could not be told apart."""
    kind = getattr(transport, "settings", None)
    return next((name for name, other in others.items() if kind and getattr(other, "settings", None) is kind), None)


def _contested(row: PluginRow, rivals: list[Registered]) -> PluginRow:
    if any(rival.own for rival in rivals):
        return replace(
            row,
            problem=f"the name {row.name!r} is that of a built-in transport, which is used",
            remedy=f"The author of {row.distribution} has to choose another name",
        )
    others = sorted({rival.distribution for rival in rivals} - {row.distribution})
    if not others:
        return replace(
            row,
            problem=f"{row.distribution} registers the name {row.name!r} more than once",
            remedy=f"The author of {row.distribution} has to drop one of them",
        )
    names = " and ".join(others)
    return replace(
        row,
        problem=f"the name {row.name!r} is registered by {names} too; none of them is used",
        remedy=f"Uninstall one (`pip uninstall {others[0]}`), or choose with RRMOVE_PLUGINS={row.distribution}",
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
    name = each.distribution
    return f"Tell the author of {name}; `pip uninstall {name}` or RRMOVE_PLUGINS=none is without it"


def _kind(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def _canonical(name: str) -> str:
    # PEP 503: `-`, `_` and `.` in names of distributions are one.
    return re.sub(r"[-_.]+", "-", name.strip().lower())
