"""contrib/: each distribution is built, installed beside rrmove, and tested by its own suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONTRIB = Path(__file__).parent.parent / "contrib"
DISTRIBUTIONS = sorted(path.parent.name for path in CONTRIB.glob("*/pyproject.toml"))


def test_there_are_some() -> None:
    assert DISTRIBUTIONS


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_it_builds_installs_and_passes_its_own_suite(name: str, tmp_path: Path) -> None:
    # What hatchling is here for: no index is asked, and the environment stays as it is.
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run(
        [*pip, "--target", tmp_path / "site", CONTRIB / name], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(CONTRIB / name)]
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(CONTRIB / name / "tests")],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert " passed" in tested.stdout
