"""Transports of strangers, good and bad: distributions on sys.path, looked for by a new process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rrmove.transport import API_VERSION

CORE = Path(__file__).parents[1] / "core"
CHILD = """
import io, json, sys
from dataclasses import asdict
out, sys.stdout = sys.stdout, io.StringIO()
sys.path[:0] = json.loads(sys.argv[1])
before = set(sys.modules)
from rrmove.discovery import discover
early = sorted(set(sys.modules) - before)
registry = discover(environ=json.loads(sys.argv[2]))
again = discover(environ=json.loads(sys.argv[2]))
json.dump({
    "rows": [asdict(row) for row in registry.rows],
    "transports": {name: type(each).__name__ for name, each in registry.transports.items()},
    "refusals": [[each.transport, each.reason] for each in registry.refusals],
    "modules": sorted(sys.modules),
    "early": early,
    "same": registry.transports.keys() == again.transports.keys(),
    "stdout": sys.stdout.getvalue(),
}, out)
"""
GOOD = """
from rrmove.probe import Probe
from rrmove.transport import API_VERSION, Capabilities
class Good:
    name = {name!r}
    api_version = API_VERSION
    needs = (Probe("uname", "uname -s", str.strip),)
    capabilities = Capabilities(resume="exact", route="direct")
    def refuse(self, request, facts):
        return None
    async def send(self, job):
        pass
"""

HOUSE = "9"  # the version of a distribution `rrmove` that the tests make up
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Put a distribution on the path: {entry point name: source of its module}."""
    number = 0

    def installed(
        distribution: str,
        plugins: dict[str, str],
        *,
        version: str = "1.2",
        folder: str = "site",
        group: str = "rrmove.transports",
        attribute: str = ":Good",
    ) -> Path:
        nonlocal number
        site = tmp_path / folder
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = [f"[{group}]"]
        for name, source in plugins.items():
            number += 1
            (site / f"plugin_{number}.py").write_text(source.format(name=name) if "{name" in source else source)
            lines.append(f"{name} = plugin_{number}{attribute}")
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        return info

    return installed


def look(tmp_path: Path, *folders: str, script: str = CHILD, **environ: str) -> dict[str, Any]:
    paths = [str(tmp_path / folder) for folder in folders or ("site",)]
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps([*paths, str(CORE)]), json.dumps(environ)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    # rrmove itself may be installed here as well, with its transports: they are not what is tested.
    house = [row for row in found["rows"] if row["distribution"] == "rrmove" and row["version"] != HOUSE]
    found["rows"] = [row for row in found["rows"] if row not in house]
    for row in house:
        found["transports"].pop(row["name"], None)
    assert found["same"], "a repeat finds the same"
    found["by"] = {(row["name"], row["distribution"]): row for row in found["rows"]}
    found["stderr"] = done.stderr
    return found


def test_a_good_plugin_is_a_transport(install: Install, tmp_path: Path) -> None:
    install("rrmove-good", {"good": GOOD})
    found = look(tmp_path)
    assert found["by"]["good", "rrmove-good"] == {
        "name": "good",
        "version": "1.2",
        "distribution": "rrmove-good",
        "route": "direct",
        "resume": "exact",
        "problem": None,
        "remedy": None,
        "trace": None,
    }
    assert found["transports"]["good"] == "Good"
    assert "good" not in dict(found["refusals"])
    assert not {"stevedore", "importlib.metadata", "pluggy", "asyncio"} & set(found["early"])


BROKEN = [
    (
        "import error",
        "import nosuchmodule_x.y",
        "ModuleNotFoundError: No module named",
        "-m pip install nosuchmodule_x",
    ),
    ("syntax error", "def", "SyntaxError", "Tell the author of rrmove-bad"),
    ("exit at import", "raise SystemExit(3)", "ends the program while it is loaded (SystemExit 3)", "RRMOVE_PLUGINS"),
    ("assertion", "assert False, 'no'", "AssertionError: no", "author"),
    ("odd exception", "class E(BaseException): pass\nraise E('odd')", "E: odd", "author"),
    ("no such class", "Other = 1", "has no attribute 'Good'", "author"),
    ("no class", "Good = 7", "names an int, where a class belongs", "author"),
    ("constructor", GOOD + "    def __init__(self): raise RuntimeError('no key')", "RuntimeError: no key", "author"),
    ("constructor exits", GOOD + "    def __init__(self): raise SystemExit", "SystemExit None", "author"),
    ("arguments", GOOD + "    def __init__(self, x): pass", "TypeError", "author"),
    ("newer", GOOD + f"    api_version = {API_VERSION + 1}", f"api_version is {API_VERSION + 1}", "install --upgrade"),
    ("ancient", GOOD + "    api_version = 0", "api_version is 0; this rrmove speaks 1", "install --upgrade"),
    ("no version", GOOD + "    del api_version", "api_version is None", "install --upgrade"),
    ("wordy version", GOOD + "    api_version = '1'", "api_version is '1'", "install --upgrade"),
    ("other name", GOOD + "    name = 'gooder'", "calls itself 'gooder' and is registered as 'bad'", "author"),
    ("no needs", GOOD + "    del needs", "has no attribute 'needs'", "author"),
    ("no send", GOOD + "    del send", "has no attribute 'send'", "author"),
    ("no refuse", GOOD + "    del refuse", "has no attribute 'refuse'", "author"),
    ("list of needs", GOOD + "    needs = []", "`needs` is a list", "author"),
    ("needs of strings", GOOD + "    needs = ('python3',)", "`needs` is a tuple", "author"),
    ("capabilities", GOOD + "    capabilities = {{}}".replace("{{}}", "dict()"), "`capabilities` is a dict", "author"),
    ("resume", GOOD + "    capabilities = Capabilities(resume='maybe', route='ssh')", "resume='maybe'", "author"),
    ("route", GOOD + "    capabilities = Capabilities(resume='none', route='air')", "route='air'", "author"),
    ("plain send", GOOD + "    def send(self, job): pass", "`send` is no `async def` method", "author"),
    (
        "async refuse",
        GOOD + "    async def refuse(self, request, facts): pass",
        "`refuse` is no plain method",
        "author",
    ),
    ("property", GOOD + "    needs = property(lambda self: 1 / 0)", "ZeroDivisionError", "author"),
]


@pytest.mark.parametrize(("source", "problem", "remedy"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_plugin_is_a_row_with_a_remedy(
    install: Install, tmp_path: Path, source: str, problem: str, remedy: str
) -> None:
    install("rrmove-bad", {"bad": source})
    install("rrmove-good", {"good": GOOD})
    found = look(tmp_path)
    row = found["by"]["bad", "rrmove-bad"]
    assert problem in row["problem"]
    assert remedy in row["remedy"]
    assert (row["route"], row["resume"]) == (None, None)
    assert "bad" not in found["transports"]
    assert dict(found["refusals"])["bad"] == row["problem"]
    assert "good" in found["transports"]
    if "loaded" in row["problem"]:
        assert "Traceback" in row["trace"]


def test_a_plugin_whose_own_module_is_gone(install: Install, tmp_path: Path) -> None:
    install("rrmove-bad", {"bad": GOOD})
    (tmp_path / "site/plugin_1.py").unlink()
    assert "--force-reinstall rrmove-bad" in look(tmp_path)["by"]["bad", "rrmove-bad"]["remedy"]


def test_what_a_plugin_prints_goes_to_stderr(install: Install, tmp_path: Path) -> None:
    install("rrmove-loud", {"loud": "print('hello from import')\n" + GOOD, "quiet": GOOD})
    found = look(tmp_path)
    assert found["stdout"] == ""
    assert "hello from import" in found["stderr"]
    row = found["by"]["loud", "rrmove-loud"]
    assert row["problem"] is None
    assert "author of rrmove-loud" in row["remedy"]
    assert found["by"]["quiet", "rrmove-loud"]["remedy"] is None


def test_one_name_in_two_distributions(install: Install, tmp_path: Path) -> None:
    install("one", {"same": GOOD, "only": GOOD})
    install("two", {"same": "raise SystemExit"})
    found = look(tmp_path)
    assert "same" not in found["transports"]
    assert "only" in found["transports"]
    for own, other in (("one", "two"), ("two", "one")):
        row = found["by"]["same", own]
        assert f"registered by {other} too" in row["problem"]
        assert f"pip uninstall {other}" in row["remedy"]
        assert f"RRMOVE_PLUGINS={own}" in row["remedy"]
    assert [name for name, _ in found["refusals"] if name == "same"] == ["same"]
    chosen = look(tmp_path, RRMOVE_PLUGINS="one")
    assert chosen["by"]["same", "one"]["problem"] is None
    assert "switched off" in chosen["by"]["same", "two"]["problem"]


def test_the_built_in_transport_wins(install: Install, tmp_path: Path) -> None:
    install("rrmove", {"house": GOOD}, version=HOUSE)
    install("burglar", {"house": "raise SystemExit"})
    found = look(tmp_path)
    assert found["by"]["house", "rrmove"]["problem"] is None
    assert "built-in" in found["by"]["house", "burglar"]["problem"]
    assert found["transports"] == {"house": "Good"}
    assert found["refusals"] == []


def test_one_distribution_with_two_plugins_of_one_name(install: Install, tmp_path: Path) -> None:
    info = install("twice", {"same": GOOD})
    text = (info / "entry_points.txt").read_text()
    (info / "entry_points.txt").write_text(text + "same = plugin_1:Other\n")
    found = look(tmp_path)
    assert [row["problem"] for row in found["rows"]] == ["twice registers the name 'same' more than once"] * 2


def test_a_distribution_that_is_there_twice_is_no_conflict(install: Install, tmp_path: Path) -> None:
    install("rrmove-good", {"good": GOOD})
    install("rrmove_good", {"good": GOOD}, version="1.1", folder="other")
    found = look(tmp_path, "site", "other")
    (row,) = found["rows"]
    assert (row["version"], row["problem"]) == ("1.2", None)


@pytest.mark.parametrize(
    ("setting", "kept"),
    [("", "ab"), ("none", ""), ("a", "a"), ("a,b", "ab"), (" A , x", "a"), ("Dist_B", "b"), ("c", "")],
)
def test_plugins_can_be_switched_off(install: Install, tmp_path: Path, setting: str, kept: str) -> None:
    install("rrmove", {"house": GOOD}, version=HOUSE)
    install("dist-a", {"a": GOOD})
    install("dist.b", {"b": GOOD})
    found = look(tmp_path, RRMOVE_PLUGINS=setting)
    assert set(found["transports"]) == {"house", *kept}
    off = [row for row in found["rows"] if row["problem"]]
    assert all("RRMOVE_PLUGINS" in row["problem"] and row["remedy"] for row in off)
    assert len(off) == 2 - len(kept)
    assert ("plugin_2" in found["modules"]) == ("a" in kept)


def test_broken_metadata_of_others_does_no_harm(install: Install, tmp_path: Path) -> None:
    install("rrmove-good", {"good": GOOD})
    (tmp_path / "site/rotten-1.dist-info").mkdir()
    (tmp_path / "site/rotten-1.dist-info/entry_points.txt").write_text("[rrmove.transports]\nnonsense\n")
    (tmp_path / "site/worse-1.dist-info").mkdir()
    (tmp_path / "site/worse-1.dist-info/entry_points.txt").write_bytes(b"[rrmove.transports]\n\xff\xfe = x:y\n")
    assert set(look(tmp_path)["transports"]) == {"good"}


def test_without_any_plugin(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    found = look(tmp_path, RRMOVE_PLUGINS="none")
    assert found["rows"] == []
