"""What makes a class a transport: every complaint says what its author has to mend."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast, get_args

from rrmove.model import Resume, Route
from rrmove.plugin_settings import declared
from rrmove.probe import Probe
from rrmove.transport import API_VERSION, Capabilities, Transport

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PARTS = ("name", "needs", "capabilities", "refuse", "send")


def accepted_versions() -> tuple[int, ...]:
    """Give the values of `api_version` that this rrmove speaks: its own, and the one before."""
    return tuple(version for version in (API_VERSION, API_VERSION - 1) if version >= 1)


def made(plugin: Any, name: str | None = None) -> tuple[Transport | None, str | None]:
    """Make a transport of a plugin's class, or take an object that is one; gives it, or what is wrong with it.

    `name` is what it is registered as. Raises what the class raises.
    """
    if isinstance(plugin, type) or not hasattr(plugin, "send"):
        problem = _unfit_class(plugin)
        transport = None if problem else plugin()
    else:
        problem, transport = _unfit_version(plugin), plugin
    problem = problem or next(_complaints(transport, name), None)
    return (None, problem) if problem else (cast("Transport", transport), None)


def shared_settings(transport: Transport, others: Mapping[str, Transport]) -> str | None:
    """Say so where another transport has the same class of settings: they could not be told apart."""
    kind = getattr(transport, "settings", None)
    if kind is None:
        return None
    rival = next((name for name, other in others.items() if getattr(other, "settings", None) is kind), None)
    return f"its `settings` is the class of {rival}, too" if rival else None


def _unfit_class(plugin: Any) -> str | None:
    if not isinstance(plugin, type):
        return f"its entry point names {_kind(plugin)}, where a class belongs"
    return _unfit_version(plugin)


def _unfit_version(plugin: Any) -> str | None:
    version = getattr(plugin, "api_version", None)
    accepted = accepted_versions()
    if version in accepted and not isinstance(version, bool):
        return None
    spoken = " and ".join(str(each) for each in accepted)
    return f"its api_version is {version!r}; this rrmove speaks {spoken}"


def _complaints(transport: Any, name: str | None) -> Iterator[str]:
    """Say what is wrong with a transport; each check rests on those before it."""
    absent = object()
    for attribute in _PARTS:
        if getattr(transport, attribute, absent) is absent:
            yield f"it has no attribute {attribute!r}"
    if not isinstance(transport.name, str) or not transport.name:
        yield f"its `name` is {_kind(transport.name)}, where a word belongs"
    if name is not None and transport.name != name:
        yield f"it calls itself {transport.name!r} and is registered as {name!r}"
    yield from _of_values(transport.needs, transport.capabilities)
    try:
        declared(transport)
    except TypeError as error:
        yield f"its `settings` {error}"
    if not callable(transport.refuse) or inspect.iscoroutinefunction(transport.refuse):
        yield "its `refuse` is no plain method"
    if not inspect.iscoroutinefunction(transport.send):
        yield "its `send` is no `async def` method"


def _of_values(needs: object, capabilities: Any) -> Iterator[str]:
    if not isinstance(needs, tuple) or not all(isinstance(each, Probe) for each in needs):
        yield f"its `needs` is {_kind(needs)}, where a tuple of probes belongs"
    if not isinstance(capabilities, Capabilities):
        yield f"its `capabilities` is {_kind(capabilities)}, where Capabilities belong"
    if capabilities.resume not in get_args(Resume):
        yield f"its capabilities have resume={capabilities.resume!r}, which there is not"
    if capabilities.route not in get_args(Route):
        yield f"its capabilities have route={capabilities.route!r}, which there is not"


def _kind(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
