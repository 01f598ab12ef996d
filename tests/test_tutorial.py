"""docs/write-a-transport.md, followed to the letter: in an empty directory, beside rrmove in a new environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rrmove.cli.newplugin import NAME, checked, written
from rrmove.errors import UsageError
from rrmove.testing import EmbeddedNode

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "write-a-transport.md").read_text(encoding="utf-8")
MOST_LINES = 30

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh program")


@dataclass(frozen=True)
class Block:
    """A block of the page: what is run, or the file that the sentence before it names."""

    language: str
    text: str
    file: str


def blocks() -> Iterator[Block]:
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        named = re.findall(r"`([\w/]+\.py)`", PAGE[: found.start()].rstrip().rpartition("\n\n")[2])
        yield Block(found[1], found[2], named[-1] if named and found[1] == "python" else "")


BLOCKS = list(blocks())
PIGEON = next(block.text for block in BLOCKS if block.file == "rrmove_pigeon.py")


def fresh_environment(folder: Path) -> dict[str, str]:
    """Make an environment that has what this one has, so that no index is asked, and can have more."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    ours = sysconfig.get_paths()["purelib"]
    (site / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    scripts = {
        "rrmove": '-m rrmove "$@" ${CONFIG:+-F "$CONFIG"}',
        "pip": '-m pip -q --no-cache-dir --disable-pip-version-check "$@"',
        "pytest": '-m pytest -p no:cacheprovider "$@"',
    }
    for name, words in scripts.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\ncase "$1" in auto) ;; *) CONFIG= ;; esac\nexec "{folder}/bin/python" {words}\n')
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # which is how pip spells that there is none
        # Python before 3.11.5 cannot parse in two threads at once (its issue 106905), as pytest's rewriting would.
        "PYTEST_ADDOPTS": "--assert=plain",
    }


@needs_ssh
@pytest.mark.timeout(180)
def test_the_tutorial_from_an_empty_directory(tmp_path: Path) -> None:
    environ = fresh_environment(tmp_path / "venv")
    folder = tmp_path / "empty"
    folder.mkdir()
    said: list[str] = []
    with EmbeddedNode(name="gpu-3") as node:
        environ["CONFIG"] = str(node.ssh_config)
        for block in BLOCKS:
            assert block.language in {"sh", "python"}
            if block.language == "python":
                assert block.file, f"nothing says where this is to be put:\n{block.text}"
                (folder / block.file).write_text(block.text)
                continue
            script = f"{block.text}\npwd >{tmp_path}/where\n"
            done = subprocess.run(
                ["sh", "-ec", script], cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, block.text + done.stdout + done.stderr
            said.append(done.stdout)
            folder = Path((tmp_path / "where").read_text().strip())
            (folder / "model.bin").write_bytes(b"model" * 500_000)
        for name in ("model.bin", "copy.bin", "again.bin"):
            assert (node.home / name).read_bytes() == (folder / "model.bin").read_bytes()
    generated, changed, own = (words for words in said if " passed" in words)
    for words in (generated, changed):  # the suite, as generated and as changed: nothing but passes
        assert re.search(r"\n(\d+) passed in", words), words
        assert "failed" not in words
        assert "skipped" not in words
    assert "1 passed" in own
    assert any("refuse files above this size" in words for words in said)


def test_its_transport_is_short() -> None:
    code = [line for line in PIGEON.splitlines() if line.strip()]
    body = [line for line in code if not line.startswith(('"""', "import ", "from "))]
    assert len(body) <= MOST_LINES


# The type checkers that people use, as far as they are installed here

CHECKERS = {
    "mypy": ["mypy", "--strict", "--python-executable", sys.executable],
    "pyright": ["pyright", "--pythonpath", sys.executable],
    "basedpyright": ["basedpyright", "--level", "error", "--pythonpath", sys.executable],
    "pyrefly": ["pyrefly", "check", "--preset", "default", "--python-interpreter-path", sys.executable],
    "ty": ["ty", "check", "--python", sys.prefix],
}
DECLARED = """
from rrmove import Transport
from rrmove_pigeon import Pigeon

transport: Transport = Pigeon()
"""
WRONG = DECLARED.replace("Pigeon()", "object()")


@pytest.mark.parametrize("checker", CHECKERS)
def test_type_checkers_agree_on_it(checker: str, tmp_path: Path) -> None:
    program = shutil.which(checker, path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip(f"{checker} is not installed")
    files = {"rrmove_pigeon.py": PIGEON, "declared.py": DECLARED}
    files |= {block.file: block.text for block in BLOCKS if block.file == "courteous.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def check(*names: str) -> subprocess.CompletedProcess[str]:
        argv = [program, *CHECKERS[checker][1:], *names]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)

    agreed = check(*files)
    assert agreed.returncode == 0, agreed.stdout + agreed.stderr
    (tmp_path / "wrong.py").write_text(WRONG)
    assert check("wrong.py").returncode != 0, "it says yes to everything"


def test_four_of_them_are_installed_with_dev() -> None:
    extras = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{name}' in extras for name in ("mypy", "basedpyright", "pyrefly", "ty"))


# What is written for another name


def test_every_file_bears_the_name() -> None:
    files = dict(written("carrier-dove2"))
    assert set(files) == {
        "README.md",
        "pyproject.toml",
        ".github/workflows/test.yml",
        "rrmove_carrier_dove2.py",
        "tests/test_carrier_dove2.py",
    }
    assert not [text for text in files.values() if "pigeon" in text.lower()]
    assert 'carrier-dove2 = "rrmove_carrier_dove2:CarrierDove2"' in files["pyproject.toml"]
    assert 'name, api_version, needs = "carrier-dove2"' in files["rrmove_carrier_dove2.py"]


def test_a_name_that_has_the_templates_in_it() -> None:
    assert "rrmove_pigeon2.py" in dict(written("pigeon2"))


@pytest.mark.parametrize("name", ["", "Upper", "1st", "a b", "../x", "a--b", "-a", "ö", "chunked", "rsync"])
def test_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(UsageError):
        checked(name)


@pytest.mark.parametrize("name", ["a", "http2", "two-words", "two_words"])
def test_what_can_be_a_name(name: str) -> None:
    assert NAME.fullmatch(name)
    assert checked(name) == name


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    argv = [sys.executable, "-m", "rrmove", "plugin", "new", "mine", "--directory", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "is there already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"
