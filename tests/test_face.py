"""The public face: complete, documented, quick to import; and the error tree is the one that is drawn."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import types
from dataclasses import is_dataclass

import pytest

import rrmove
from rrmove import errors

HEAVY = ("asyncio", "logging", "paramiko", "pluggy", "rich", "shtab", "socket", "sqlite3", "stevedore", "subprocess")


def python(program: str) -> str:
    """Run a program in an interpreter of its own and give what it prints."""
    argv = [sys.executable, "-c", program]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


def submodules() -> list[str]:
    return [found.name for found in pkgutil.walk_packages(rrmove.__path__, "rrmove.") if "__main__" not in found.name]


@pytest.mark.parametrize("name", rrmove.__all__)
def test_every_public_name_is_there_and_is_what_its_home_has(name: str) -> None:
    home = importlib.import_module(f"rrmove.{rrmove._HOME[name]}")
    assert name in dir(rrmove)
    if name == "hookimpl":  # a marker, made anew at each asking so that pluggy is not imported before
        assert type(getattr(rrmove, name)) is type(home.hookimpl)
        assert rrmove.hookimpl.project_name == "rrmove"
        return
    assert getattr(rrmove, name) is getattr(home, name)


def test_all_names_each_name_once() -> None:
    names = list(rrmove.__all__)
    assert sorted(names) == sorted(set(names))
    assert set(names) == set(rrmove._HOME)
    assert not [name for name in names if name.startswith("_")]
    assert sum(map(len, rrmove._HOMES.values())) == len(names)  # no name has two homes


def test_what_type_checkers_see_is_what_there_is() -> None:
    # The imports under TYPE_CHECKING are read, not run: they have to be the table's.
    text = inspect.getsource(rrmove)
    block = text[text.index("if TYPE_CHECKING:") : text.index("_HOMES")]
    seen: dict[str, str] = {}
    for home, names in re.findall(r"from rrmove\.([\w.]+) import (\([^)]*\)|[^\n]*)", block):
        for name in re.findall(r"\w+", names.partition("#")[0]):
            seen[name] = home
    assert seen == rrmove._HOME


def test_a_name_that_is_not_there_says_so() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        rrmove.nonsense  # noqa: B018
    assert not hasattr(rrmove, "_nonsense")


@pytest.mark.parametrize("name", rrmove.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    thing = getattr(rrmove, name)
    if not inspect.isclass(thing) and not inspect.isfunction(thing):
        return  # a constant, a probe, a union: its home's comments speak for it
    if isinstance(thing, types.GenericAlias):
        return
    words = (thing.__doc__ or "").strip()
    assert words, f"{name} has no docstring"
    if inspect.isclass(thing) and is_dataclass(thing):
        assert not words.startswith(f"{name}("), f"{name} has only what dataclasses generate"
    if inspect.isclass(thing) and thing.__module__.startswith("rrmove"):
        for attribute, value in vars(thing).items():
            documented = inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
            if documented and not attribute.startswith("_"):
                assert (value.__doc__ or "").strip(), f"{name}.{attribute} has no docstring"


# What it costs


def test_importing_it_loads_nothing_heavy() -> None:
    loaded = set(json.loads(python("import sys, json, rrmove; print(json.dumps(sorted(sys.modules)))")))
    before = set(json.loads(python("import sys, json; print(json.dumps(sorted(sys.modules)))")))
    assert not {name for name in loaded - before if name.partition(".")[0] in HEAVY}
    assert {name for name in loaded if name.startswith("rrmove")} == {"rrmove"}


@pytest.mark.parametrize("name", ["Transient", "UsageError", "Node", "Range", "API_VERSION", "Capabilities"])
def test_a_plugins_nouns_cost_next_to_nothing(name: str) -> None:
    loaded = json.loads(python(f"import sys, json\nfrom rrmove import {name}\nprint(json.dumps(sorted(sys.modules)))"))
    assert not {"asyncio", "paramiko", "stevedore", "pluggy", "rich", "sqlite3"} & set(loaded)


def test_a_name_is_the_function_even_after_its_neighbours_were_imported() -> None:
    # A submodule of the same name would take the function's place on the package.
    program = "import importlib, json, pkgutil, rrmove\n"
    program += "for found in pkgutil.walk_packages(rrmove.__path__, 'rrmove.'):\n"
    program += "    if '__main__' not in found.name:\n        importlib.import_module(found.name)\n"
    program += "kinds = {name: type(getattr(rrmove, name)).__name__ for name in rrmove.__all__}\n"
    program += "print(json.dumps([callable(rrmove.move), kinds]))"
    is_callable, kinds = json.loads(python(program).splitlines()[-1])
    assert is_callable
    assert not [name for name, kind in kinds.items() if kind == "module"]


def test_no_public_name_is_a_submodules() -> None:
    assert not set(rrmove.__all__) & {name.rpartition(".")[2] for name in submodules() if name.count(".") == 1}


@pytest.mark.parametrize("name", submodules())
def test_every_room_says_what_is_at_home_there(name: str) -> None:
    assert (importlib.import_module(name).__doc__ or "").strip()


# The errors


def drawn() -> dict[str, tuple[str | None, int | None]]:
    """Read the tree in the docstring of `rrmove.errors`: each error's parent, and its exit code where it says one."""
    tree: dict[str, tuple[str | None, int | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^((?:│   |    )*(?:[├└]── )?)([A-Z]\w+) {2,}(?:exit (\d+))?", line)
        if found:
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            tree[found[2]] = (path[depth - 1] if depth else None, int(found[3]) if found[3] else None)
    return tree


def test_the_tree_is_the_one_that_is_drawn() -> None:
    actual = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
    }
    tree = drawn()
    assert set(tree) == set(actual)
    assert len(tree) > 8
    for name, (parent, _) in tree.items():
        base = actual[name].__base__
        assert base is not None
        assert base.__name__ == (parent or "Exception")


@pytest.mark.parametrize(("name", "place"), drawn().items())
def test_exit_codes_are_the_drawn_ones(name: str, place: tuple[str | None, int | None]) -> None:
    parent, code = place
    if code is None:
        assert parent is not None
        code = drawn()[parent][1]
    assert getattr(errors, name).exit_code == code


def test_every_error_is_public() -> None:
    assert set(drawn()) <= set(rrmove.__all__)


@pytest.mark.parametrize("kind", [getattr(errors, name) for name in drawn()], ids=list(drawn()))
def test_an_error_says_where_what_and_what_next(kind: type[errors.RRMoveError]) -> None:
    error = kind("it broke", node="gpu-3", tried="this", remedy="Do that")
    assert str(error) == "gpu-3: it broke (tried: this). Do that"
    assert str(kind("it broke")) == "it broke"
    assert error.outcome is None


def test_foremost_prefers_the_cause_to_its_consequences() -> None:
    lost, full, usage = errors.Transient("lost"), errors.Fatal("full"), errors.UsageError("no")
    table: list[tuple[list[BaseException], BaseException]] = [
        ([lost], lost),
        ([lost, full], full),
        ([full, lost], full),
        ([lost, BaseExceptionGroup("inner", [errors.Unusable("u"), usage])], usage),
        ([BaseExceptionGroup("inner", [lost]), errors.Transient("later")], lost),
    ]
    for group, expected in table:
        assert errors.foremost(BaseExceptionGroup("outer", group)) is expected
