"""What the README says is true: its commands parse, its code runs, its tables are complete."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import pytest

import rrmove
from rrmove import errors, events
from rrmove.cli.arguments import parse
from rrmove.cli.jsonlines import event_name
from rrmove.cli.parser import COMMANDS, build_parser
from rrmove.inventory import parse_target
from rrmove.testing import EmbeddedNode, Faults

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
INTERRUPTED = 130

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh program")


def blocks(language: str) -> list[str]:
    """Give the fenced code of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(heading: str) -> str:
    """Give what stands under a heading, up to the next one."""
    return re.split(r"^#+ ", README.split(f"{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rrmove_commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part.removeprefix(".venv/bin/") for part in parts if re.match(r"(\.venv/bin/)?rrmove ", part)]


def courier(folder: Path) -> Path:
    """Install the README's transport as `pip` would: a module, and beside it its metadata."""
    module = next(block for block in blocks("python") if "class Courier" in block)
    (folder / "rrmove_courier.py").write_text(module)
    points = next(tomllib.loads(block) for block in blocks("toml") if "entry-points" in block)
    ((group, names),) = points["project"]["entry-points"].items()
    info = folder / "rrmove_courier-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rrmove-courier\nVersion: 0.1\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def run(*words: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    argv = [sys.executable, "-m", "rrmove", *map(str, words)]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def node() -> Iterator[EmbeddedNode]:
    with EmbeddedNode(Faults(reset_after_bytes=6_000_000), name="gpu-3") as node:
        yield node


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    path.write_bytes(os.urandom(9_000_001))
    return path


class TestCommandLine:
    """Commands, options and exit codes."""

    @pytest.mark.parametrize("line", rrmove_commands())
    def test_commands_parse(self, line: str) -> None:
        parse(shlex.split(line, comments=True)[1:])

    def test_the_first_command_installs_and_shows(self) -> None:
        assert blocks("sh")[0].startswith("python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/rrmove demo")

    def test_check_can_be_run(self) -> None:
        assert blocks("sh")[1] == "./check\n"
        assert os.access(ROOT / "check", os.X_OK)

    def test_every_option_of_auto_is_told(self) -> None:
        told = set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z0-9-]*", section("### Options of `rrmove auto`")))
        offered = set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z0-9-]*", _help("auto"))) - {"-h", "--help"}
        assert told == offered

    def test_every_option_anywhere_exists(self) -> None:
        offered = {word for name in COMMANDS for word in re.findall(r"--[a-z][a-z0-9-]*", _help(name))}
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", README)) <= offered

    def test_every_command_is_told(self) -> None:
        assert set(re.findall(r"^\| `rrmove ([a-z]+)", section("## Moving a file"), re.MULTILINE)) == set(COMMANDS)

    def test_every_exit_code_is_told(self) -> None:
        told = set(map(int, re.findall(r"^\| (\d+) \|", section("### Exit codes"), re.MULTILINE)))
        raised = {
            thing.exit_code
            for thing in vars(errors).values()
            if isinstance(thing, type) and issubclass(thing, errors.RRMoveError)
        }
        assert told == {0, INTERRUPTED} | raised

    @needs_ssh
    def test_the_outcome_in_json(self, node: EmbeddedNode, source: Path) -> None:
        told = json.loads(blocks("json")[0])
        done = run("auto", source, "gpu-3", "--json", "-F", node.ssh_config)
        *seen, outcome = map(json.loads, done.stdout.splitlines())
        assert done.returncode == 0, done.stderr
        assert list(outcome) == list(told)
        assert {type(value) for value in outcome.values()} <= {type(value) for value in told.values()}
        assert list(outcome["attempts"][0]) == list(told["attempts"][0])
        names = set(re.findall(r"`([a-z_]+)`", section("### For programs: `--json`").split("each with")[0]))
        assert {event["event"] for event in seen} <= names

    def test_every_event_is_told(self) -> None:
        section_events = section("### For programs: `--json`").split("each with")[0]
        names = {event_name(kind.__new__(kind)) for kind in get_args(events.Event)}
        assert set(re.findall(r"`([a-z_]+)`", section_events)) == names - {"finished"}


class TestNodes:
    """The inventory and the targets."""

    def test_the_inventory_is_read_whole(self, tmp_path: Path) -> None:
        text = next(block for block in blocks("toml") if "[nodes." in block)
        path = tmp_path / "rrmove.toml"
        path.write_text(text)
        inventory = rrmove.load_inventory(path)
        (node,) = inventory.nodes.values()
        assert node.name == "nebius-h100-3"
        assert node.ceiling == 50e6  # the provider's is lower than all nodes'
        assert node.destination == "/data/"
        assert [(each.host, each.kind) for each in node.addresses] == [
            ("203.0.113.9", "public"),
            ("100.64.0.7", "tailscale"),
            ("10.0.0.7", "lan"),
        ]
        assert not node.extra, "the README shows keys that are not known"

    def test_targets_are_understood(self) -> None:
        rows = re.findall(r"^\| (`.*?) \|", section("### Targets"), re.MULTILINE)
        targets = [target for row in rows for target in re.findall(r"`([^`]+)`", row)]
        assert len(targets) > 6
        for target in targets:
            parsed = parse_target(target)
            assert bool(parsed.host) != bool(parsed.tag)


class TestPython:
    """Code for embedders and for authors of transports."""

    @pytest.mark.parametrize("code", blocks("python"))
    def test_code_runs_and_names_exist(self, code: str) -> None:
        tree = ast.parse(code)
        used = {
            part.attr
            for part in ast.walk(tree)
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "rrmove"
        }
        used |= {
            name.name
            for part in ast.walk(tree)
            if isinstance(part, ast.ImportFrom) and part.module == "rrmove"
            for name in part.names
        }
        assert used <= set(rrmove.__all__)

    @needs_ssh
    def test_the_first_program(self, node: EmbeddedNode, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(source.parent)
        code = next(block for block in blocks("python") if "move_sync" in block)
        code = code.replace("gpu-3:/data/", f"gpu-3:{node.home}/data/").replace("50e6", "50e6, inventory=given")
        told: dict[str, object] = {"given": rrmove.load_inventory(ssh_config=node.ssh_config)}
        exec(compile(code, "README.md", "exec"), told)
        assert cast("rrmove.Outcome", told["outcome"]).ok
        assert (node.home / "data/model.pth").read_bytes() == source.read_bytes()

    @needs_ssh
    def test_the_watching_program(self, node: EmbeddedNode, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code = next(block for block in blocks("python") if "rrmove.watch" in block)
        code = code.replace("deadline=3600", "deadline=3600, inventory=given")
        told: dict[str, object] = {"given": rrmove.load_inventory(ssh_config=node.ssh_config)}
        exec(compile(code, "README.md", "exec"), told)
        asyncio.run(told["push"](str(source), "gpu-3:watched.pth"))  # type: ignore[operator]
        assert "gpu-3 True" in capsys.readouterr().out
        assert (node.home / "watched.pth").read_bytes() == source.read_bytes()

    def test_the_transport_is_found(self, tmp_path: Path) -> None:
        done = run("plugins", "--json", path=courier(tmp_path))
        rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
        assert rows["courier"]["problem"] is None

    @needs_ssh
    def test_the_transport_moves_a_file(self, node: EmbeddedNode, source: Path, tmp_path: Path) -> None:
        where = tmp_path / "site"
        where.mkdir()
        done = run("auto", source, "gpu-3", "--only", "courier", "--json", "-F", node.ssh_config, path=courier(where))
        assert done.returncode == 0, done.stderr
        outcome = json.loads(done.stdout.splitlines()[-1])
        assert outcome["transport"] == "courier"
        assert len(outcome["attempts"]) > 1, "the link resets: it has to have gone on where it stopped"
        assert (node.home / "model.pth").read_bytes() == source.read_bytes()


class TestPages:
    """All that is written for people."""

    @pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
    def test_links_lead_somewhere(self, page: Path) -> None:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), link

    @pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
    def test_files_that_are_named_exist(self, page: Path) -> None:
        places = r"`((?:core|plugins|tests|examples|docs|benchmarks)/[\w./*-]+)`"
        for name in re.findall(places, page.read_text(encoding="utf-8")):
            assert list(ROOT.glob(name.rstrip("/"))), name


def _help(command: str) -> str:
    actions = build_parser()._actions
    commands = next(action.choices for action in actions if action.dest == "command")
    return str(cast("dict[str, object]", commands)[command].format_help())  # type: ignore[attr-defined]
