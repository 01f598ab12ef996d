"""What a transport may be told: the settings that it declares, and the values that they get."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from rrmove.errors import UsageError
from rrmove.model import FOR_THIS_MOVE, Given, Settings
from rrmove.units import Rate, Size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rrmove.model import Refusal
    from rrmove.transport import Transport

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_EXPECTED: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Size: "a size like '50M'",
    Rate: "a rate like '50M'",
    tuple[str, ...]: "a list of strings",
}


class _OfOtherKind(Exception):  # noqa: N818  an answer more than an error
    """A value cannot be read as what is expected."""


@dataclass(frozen=True, slots=True)
class Declared:
    """One setting as a transport declares it; `help` is from its field's metadata, if it has any."""

    transport: str
    key: str
    type: Any
    default: object
    help: str = ""

    @property
    def name(self) -> str:
        """What it is called in errors and after `-o`."""
        return f"{self.transport}.{self.key}"

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return re.sub(r"[^A-Z0-9]", "_", f"RRMOVE_{self.transport}_{self.key}".upper())

    @property
    def expected(self) -> str:
        """Say in words what it takes."""
        return _in_words(self.type)

    def read(self, given: Given) -> object:
        """Check and convert a value. Raises UsageError, which names the key, the value and its origin."""
        try:
            return _read(self.type, given.value)
        except (_OfOtherKind, UsageError) as error:
            raise UsageError(
                f"{self.name} must be {self.expected}, not {given.value!r} ({given.origin})",
                remedy=f"`rrmove plugins {self.transport}` lists the settings of {self.transport}",
            ) from error


def declared(transport: Transport, name: str | None = None) -> tuple[Declared, ...]:
    """List the settings that a transport declares, in their order; none where it has no `settings`.

    Raises TypeError, with a clause about `settings`, where they are none that can be set.
    """
    kind: Any = getattr(transport, "settings", None)
    if kind is None:
        return ()
    params: Any = getattr(kind, "__dataclass_params__", None)
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise TypeError("is no dataclass")
    if not params.frozen:
        raise TypeError("is not frozen: write `@dataclass(frozen=True)`")
    try:
        hints = get_type_hints(kind, include_extras=True)
    except Exception as error:
        raise TypeError(f"has types that cannot be looked up at run time ({error})") from error
    name = name or transport.name
    found = []
    for field in dataclasses.fields(kind):
        made: Any = field.default_factory
        default: Any = field.default if made is dataclasses.MISSING else made()
        each = Declared(name, field.name, hints[field.name], default, str(field.metadata.get("help", "")))
        if default is dataclasses.MISSING or not field.init:
            raise TypeError(f"has no default for {field.name!r}")
        if not _known(each.type):
            raise TypeError(f"has {field.name!r} of a type that nobody could write: {each.type}")
        if not _fits(each.type, default):
            raise TypeError(f"has {default!r} as default of {field.name!r}, which has to be {each.expected}")
        found.append(each)
    return tuple(found)


def given(name: str, value: object) -> Given:
    """Take NAME.KEY apart. Raises UsageError where it is none."""
    transport, dot, key = name.partition(".")
    if not (dot and transport and key):
        raise UsageError(f"{name!r} names no setting", remedy="Write it as TRANSPORT.KEY, as in http.tls")
    return Given(transport, key, value)


def settled(
    transports: Mapping[str, Transport],
    said: Sequence[Given],
    *,
    problems: Iterable[Refusal] = (),
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Give the settings of all transports, from what the inventory and the move say.

    The move's own words come before the environment's, and those before the inventory's, of which
    the last one holds. Raises UsageError where a value is of another type, where a key is not
    known, or where the move names a transport that is not there; what an inventory says to such a
    one is kept for machines that have it.
    """
    absent = {refusal.transport for refusal in problems}
    for each in said:
        if each.origin == FOR_THIS_MOVE and each.transport not in {*transports, *absent}:
            raise UsageError(
                f"{each.name} is a setting of a transport that is not there",
                remedy=_nearest(each.transport, transports),
            )
    return Settings(
        tuple(
            _values(transport, name, [each for each in said if each.transport == name], environ)
            for name, transport in transports.items()
            if getattr(transport, "settings", None) is not None or any(each.transport == name for each in said)
        )
    )


def _values(transport: Transport, name: str, said: Sequence[Given], environ: Mapping[str, str]) -> object:
    known = {each.key: each for each in declared(transport, name)}
    for each in said:
        if each.key not in known:
            has = _nearest(each.key, known) if known else f"{name} has no settings"
            raise UsageError(f"{each.name} is no setting of {name} ({each.origin})", remedy=has)
    # The environment's words are put in where they belong: after the inventory's, before the move's.
    around = [
        Given(name, key, environ[each.variable], f"${each.variable}")
        for key, each in known.items()
        if each.variable in environ
    ]
    early = [each for each in said if each.origin != FOR_THIS_MOVE]
    late = [each for each in said if each.origin == FOR_THIS_MOVE]
    last = {each.key: each for each in (*early, *around, *late)}
    read = {key: known[key].read(each) for key, each in last.items()}
    kind: Any = getattr(transport, "settings", None)
    try:
        return kind(**read) if kind is not None else None
    except (ValueError, TypeError) as error:  # what its __post_init__ has against them
        origins = ", ".join(f"{name}.{key}: {each.origin}" for key, each in last.items())
        raise UsageError(f"the settings of {name} are refused: {error} ({origins})") from error


def _nearest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3)
    return f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(names)}"


# What can be declared

_PLAIN = (bool, int, float, str, Size, Rate, tuple[str, ...])


def _options(kind: Any) -> tuple[Any, ...] | None:
    """Take `X | None` apart; None where it is no union."""
    return get_args(kind) if get_origin(kind) in {Union, types.UnionType} else None


def _known(kind: Any) -> bool:
    if (options := _options(kind)) is not None:
        rest = [each for each in options if each is not type(None)]
        return len(rest) == 1 and len(options) == 2 and _known(rest[0])
    return kind in _PLAIN or get_origin(kind) is Literal


def _in_words(kind: Any) -> str:
    if (options := _options(kind)) is not None:
        return " or ".join(_in_words(each) for each in options if each is not type(None)) + ", or empty for none"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return _EXPECTED[kind]


def _fits(kind: Any, value: object) -> bool:
    if (options := _options(kind)) is not None:
        return value is None or any(_fits(each, value) for each in options if each is not type(None))
    if get_origin(kind) is Literal:
        return any(value == each and type(value) is type(each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if plain is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is plain


def _read(kind: Any, value: object) -> object:
    """Convert a value, as TOML, Python or (as a string) a shell gives it."""
    if (options := _options(kind)) is not None:
        rest = next(each for each in options if each is not type(None))
        return None if value is None or value == "" else _read(rest, value)
    if get_origin(kind) is tuple and isinstance(value, str | list):
        value = tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else tuple(value)
    elif get_origin(kind) is Annotated and isinstance(value, str):
        value = kind.__metadata__[0](value)
    elif isinstance(value, str):
        value = _word(kind, value.strip())
    if not _fits(kind, value) or (isinstance(value, float) and not math.isfinite(value)):
        raise _OfOtherKind
    return float(value) if kind in {float, Rate} and isinstance(value, int) else value


def _word(kind: Any, text: str) -> object:
    if kind is bool:
        return _WORDS.get(text.lower())
    if kind in {int, float}:
        try:
            return kind(text)
        except ValueError as error:
            raise _OfOtherKind from error
    if get_origin(kind) is Literal:
        return next((each for each in get_args(kind) if str(each) == text), None)
    return text
