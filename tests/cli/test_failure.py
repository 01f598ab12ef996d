"""Errors: a sentence, the way out, an exit code; never a traceback."""

from __future__ import annotations

import stat
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rrmove.cli.failure import message, report
from rrmove.errors import (
    Fatal,
    IntegrityError,
    NoRouteError,
    PluginError,
    RRMoveError,
    Transient,
    TransportError,
    Unusable,
    UsageError,
)
from rrmove.model import Refusal
from tests.cli.scripted import environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.scripted import Said, Script

CODES = [
    (RRMoveError, 1),
    (UsageError, 2),
    (PluginError, 1),
    (NoRouteError, 3),
    (IntegrityError, 4),
    (TransportError, 1),
    (Transient, 1),
    (Unusable, 1),
    (Fatal, 1),
]


@pytest.mark.parametrize(("kind", "code"), CODES)
def test_exit_codes(kind: type[RRMoveError], code: int, rrmove: Callable[..., Said], script: Script) -> None:
    script.raises = kind("it broke", node="gpu-3", tried="ssh", remedy="Mend it")
    said = rrmove("auto", "model.pth", "gpu-3", "-q")
    assert (said.code, said.out) == (code, "")
    assert said.err == "rrmove: gpu-3: it broke (tried: ssh)\n    Mend it\n"


def test_refusals_are_listed() -> None:
    error = NoRouteError(
        "no transport can serve",
        node="gpu-3",
        refusals=[Refusal("rsync", "it is not on the node"), Refusal("http", "port 8780\nis filtered")],
        remedy="Install rsync there\nor open the port",
    )
    assert message(error).splitlines() == [
        "rrmove: gpu-3: no transport can serve",
        "    rsync  it is not on the node",
        "    http   port 8780\\nis filtered",
        "    Install rsync there",
        "    or open the port",
    ]


def test_errors_are_taken_out_of_their_groups(capsys: pytest.CaptureFixture[str]) -> None:
    group = BaseExceptionGroup("g", [ExceptionGroup("h", [Fatal("the disk is full")])])
    assert report(group) == 1
    assert capsys.readouterr().err == "rrmove: the disk is full\n"


def test_a_bug_is_written_to_a_file_that_only_the_user_reads(
    rrmove: Callable[..., Said], script: Script, tmp_path: Path
) -> None:
    script.raises = ValueError("odd \x1b[31m thing")
    said = rrmove("auto", "model.pth", "gpu-3")
    (details,) = (tmp_path / "state" / "rrmove").iterdir()
    assert said.code == 1
    assert said.err.splitlines()[-1] == (
        f"rrmove: internal error: ValueError: odd \\x1b[31m thing; the details are in {details}"
    )
    assert stat.S_IMODE(details.stat().st_mode) == 0o600
    assert stat.S_IMODE(details.parent.stat().st_mode) == 0o700
    assert "Traceback" in details.read_text()
    assert "['auto', 'model.pth', 'gpu-3']" in details.read_text()


def test_where_no_state_can_be_written_the_temporary_directory_takes_it(
    rrmove: Callable[..., Said], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    script.raises = ValueError("odd")
    said = rrmove("auto", "model.pth", "gpu-3")
    assert said.code == 1
    assert "the details are in /" in said.err


def test_a_move_that_ends_badly_without_raising_is_a_failure(rrmove: Callable[..., Said], script: Script) -> None:
    ends = script.ends
    script.ends = lambda source, node: replace(ends(source, node), digest=None, error="it did not arrive")
    said = rrmove("auto", "model.pth", "gpu-3", "-q")
    assert (said.code, said.err) == (1, "rrmove: gpu-3: it did not arrive\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys; from rrmove.cli import main; sys.stdin.readline(); sys.exit(main(['--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout
    process.stdout.close()
    _, err = process.communicate(b"\n", timeout=30)
    assert process.returncode in {0, 1}
    assert err == b""
