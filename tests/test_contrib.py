"""contrib/: each distribution is built, installed beside a wheel of rrmove, and tested by its own suite."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Process = subprocess.Popen[bytes]

ROOT = Path(__file__).parent.parent
CONTRIB = ROOT / "contrib"
DISTRIBUTIONS = sorted(path.parent.name for path in CONTRIB.glob("*/pyproject.toml"))


def run(*argv: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the Python of a venv that has wheels of rrmove and of everything in contrib, and what those need.

    What they need comes from the environment of the tests, so that no index is asked; all is built
    and installed by one call of pip each, as those are what takes time.
    """
    home = tmp_path_factory.mktemp("contrib")
    offline = ("--no-deps", "--no-index", "-q", "--disable-pip-version-check")
    sources = [ROOT, *(CONTRIB / name for name in DISTRIBUTIONS)]
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", home / "wheels", *sources)
    venv.create(home / "venv", with_pip=False, symlinks=True)
    python = home / "venv/bin/python"
    run(*pip, "--python", python, "install", *offline, *(home / "wheels").glob("*.whl"))
    here = sysconfig.get_path("purelib")
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "borrowed.pth").write_text(f"{here}\n")  # behind the venv's own; a .pth in there is not read
    return python


def test_there_are_some() -> None:
    assert len(DISTRIBUTIONS) >= 6


def test_rrmove_and_they_are_the_installed_ones(python: Path) -> None:
    names = [name.replace("-", "_") for name in DISTRIBUTIONS]
    program = f"import importlib\nfor name in {['rrmove', *names]!r}: print(importlib.import_module(name).__file__)"
    for line in run(python, "-I", "-c", program).splitlines():
        assert Path(line).is_relative_to(python.parents[1])


@pytest.fixture(scope="module")
def suites(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, tuple[Process, Path]]]:
    """Start all suites at the same time, as most of theirs is waiting; gives each with what it says."""
    said = tmp_path_factory.mktemp("said")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with ExitStack() as stack:
        started = {}
        for name in DISTRIBUTIONS:
            options: list[str | Path] = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", CONTRIB / name]
            options += ["-o", "asyncio_mode=auto", "--import-mode=importlib", "--basetemp", said / f"{name}.tmp"]
            out = stack.enter_context((said / name).open("w"))
            process = subprocess.Popen(
                [python, "-m", "pytest", *options, CONTRIB / name / "tests"],
                env={
                    **os.environ,
                    "PATH": path,
                    "PYTHONPATH": "",
                    "RRMOVE_PLUGINS": name,
                },  # the others are not at work
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            started[name] = process, said / name
        yield started


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_it_passes_its_own_suite(name: str, suites: Mapping[str, tuple[Process, Path]]) -> None:
    process, said = suites[name]
    status = process.wait()
    text = said.read_text()
    assert status == 0, text
    assert " passed" in text
    assert "skipped" not in text, text


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_it_is_a_template(name: str) -> None:
    there = CONTRIB / name
    assert (there / "README.md").read_text().startswith(f"# {name}\n")
    assert list(there.glob("tests/test_*.py"))
    code = [path for path in there.rglob("*.py") if "tests" not in path.parts]
    assert code
    for path in code:
        for line in path.read_text().splitlines():
            assert not line.lstrip().startswith(("from rrmove.", "import rrmove.")), f"{path}: {line}"
