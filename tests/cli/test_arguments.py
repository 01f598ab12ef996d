"""argv -> one frozen command, or a UsageError that says what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrmove.cli.arguments import (
    Access,
    AutoCommand,
    CleanCommand,
    Command,
    CompletionCommand,
    DemoCommand,
    NodesCommand,
    Output,
    PlanCommand,
    PluginsCommand,
    ProbeCommand,
    parse,
)
from rrmove.errors import UsageError
from rrmove.model import Options

HEX = "0123456789abcdef" * 4

PARSED: list[tuple[str, Command]] = [
    ("auto f gpu", AutoCommand(source="f", targets=("gpu",))),
    ("auto f a b:/x @c", AutoCommand(source="f", targets=("a", "b:/x", "@c"))),
    ("auto f a b --at-once 3", AutoCommand(source="f", targets=("a", "b"), at_once=3)),
    ("auto f --only rsync gpu", AutoCommand(source="f", targets=("gpu",), options=Options(only=("rsync",)))),
    (
        "auto f gpu --only a,b --only b,c --without d",
        AutoCommand(source="f", targets=("gpu",), options=Options(only=("a", "b", "c"), without=("d",))),
    ),
    ("auto f gpu --priority 30", AutoCommand(source="f", targets=("gpu",), options=Options(priority=30))),
    ("auto f gpu --limit-rate 50M", AutoCommand(source="f", targets=("gpu",), options=Options(limit_rate=50e6))),
    ("auto f gpu --deadline 90", AutoCommand(source="f", targets=("gpu",), options=Options(deadline=90.0))),
    ("auto f gpu --deadline 2h", AutoCommand(source="f", targets=("gpu",), options=Options(deadline=7200.0))),
    (f"auto f gpu --sha256 {HEX.upper()}", AutoCommand(source="f", targets=("gpu",), options=Options(sha256=HEX))),
    (f"auto f gpu --sha256 sha256:{HEX}", AutoCommand(source="f", targets=("gpu",), options=Options(sha256=HEX))),
    (
        "auto f gpu --ssh paramiko --nodes n.toml -F cfg",
        AutoCommand(
            source="f",
            targets=("gpu",),
            access=Access(nodes=Path("n.toml"), ssh_config=Path("cfg"), ssh="paramiko"),
        ),
    ),
    ("auto f gpu --json -q", AutoCommand(source="f", targets=("gpu",), output=Output(json=True, quiet=True))),
    ("auto f gpu --verbose", AutoCommand(source="f", targets=("gpu",), output=Output(verbose=True))),
    ("auto -- -f gpu", AutoCommand(source="-f", targets=("gpu",))),
    ("plan f gpu --json", PlanCommand(source="f", targets=("gpu",), output=Output(json=True))),
    ("probe a b", ProbeCommand(nodes=("a", "b"))),
    ("plugins -v", PluginsCommand(output=Output(verbose=True))),
    ("nodes --names", NodesCommand(names=True)),
    ("clean gpu:/data --older-than 7d", CleanCommand(target="gpu:/data", older_than=604800.0)),
    ("demo", DemoCommand(size=64_000_000)),
    ("demo --size 1MiB", DemoCommand(size=1_048_576)),
    ("completion fish", CompletionCommand(shell="fish")),
]


@pytest.mark.parametrize(("line", "command"), PARSED, ids=[line for line, _ in PARSED])
def test_a_command_line_means_one_command(line: str, command: Command) -> None:
    assert parse(line.split()) == command


REFUSED = [
    ("", "no command", "--help"),
    ("atuo f gpu", "'atuo' is no command", "rrmove auto"),
    ("model.pth gpu", "'model.pth' is no command", "`rrmove auto model.pth gpu`"),
    ("auto", "missing: SOURCE, TARGET", "rrmove auto --help"),
    ("auto f", "missing: TARGET", "rrmove auto --help"),
    ("auto f gpu --nope", "unknown option --nope", "rrmove auto --help"),
    ("auto f gpu --js", "unknown option --js", "rrmove auto --help"),
    ("auto f gpu --only a h", "out of place: h", "rrmove auto --help"),
    ("auto f gpu -q -v", "not allowed with", "rrmove auto --help"),
    ("auto f gpu --limit-rate fast", "'fast' is no rate", "50M"),
    ("auto f gpu --limit-rate 0", "rate", "Leave the limit out"),
    ("auto f gpu --deadline soon", "'soon' is no length of time", "30m"),
    ("auto f gpu --deadline 0", "'0' is no length of time", "30m"),
    ("auto f gpu --sha256 abc", "'abc' is no SHA-256", "64 hex digits"),
    ("auto f gpu --only a,,b", "'a,,b' is no list of names", "a,b"),
    ("auto f gpu --only a,b --without b", "b is in --only and in --without", "one of them"),
    ("auto f gpu --ssh putty", "putty", "rrmove auto --help"),
    ("clean a b", "out of place: b", "rrmove clean --help"),
    ("probe", "missing: NODE", "rrmove probe --help"),
    ("demo --size 0", "'0' is nothing to move", "64M"),
    ("completion cmd", "cmd", "rrmove completion --help"),
]


@pytest.mark.parametrize(("line", "what", "remedy"), REFUSED, ids=[line or "nothing" for line, _, _ in REFUSED])
def test_a_mistake_is_named_and_so_is_the_way_out(line: str, what: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line.split())
    assert what in caught.value.what
    assert remedy in (caught.value.remedy or "")
    assert "\n" not in caught.value.what


@pytest.mark.parametrize("command", ["", "auto", "plan", "probe", "plugins", "nodes", "clean", "demo", "completion"])
def test_every_command_has_help_that_fits_a_terminal(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.startswith(f"usage: rrmove {command}".rstrip())
    assert max(map(len, text.splitlines())) <= 80
