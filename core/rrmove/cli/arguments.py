"""argv -> one frozen command; reads no file and imports nothing slow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from rrmove.cli.parser import build_parser, check_command
from rrmove.cli.text import printable
from rrmove.errors import UsageError
from rrmove.model import PRIORITY, Options
from rrmove.plugin_settings import given

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from rrmove.serving.roots import RootSpec

SSH = Literal["auto", "openssh", "paramiko"]
Shell = Literal["bash", "zsh", "fish", "tcsh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where nodes are looked up, and which SSH logs in to them."""

    nodes: Path | None = None
    ssh_config: Path | None = None
    ssh: SSH = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How much is said, and for whom."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoCommand:
    """Move a file; `at_once` says to how many nodes at a time, where that is not left open."""

    source: str
    targets: tuple[str, ...]
    at_once: int | None = None
    options: Options = field(default_factory=Options)
    access: Access = field(default_factory=Access)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCommand:
    """Show how a file would be moved."""

    source: str
    targets: tuple[str, ...]
    options: Options = field(default_factory=Options)
    access: Access = field(default_factory=Access)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeCommand:
    """Look at nodes."""

    nodes: tuple[str, ...]
    access: Access = field(default_factory=Access)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginsCommand:
    """List the transports, or show the one called `name`."""

    name: str | None = None
    plugins: tuple[str, ...] = ()
    output: Output = field(default_factory=Output)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPluginCommand:
    """Write a distribution for a new transport."""

    name: str
    directory: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesCommand:
    """List the nodes; `names` prints nothing but their names."""

    names: bool = False
    access: Access = field(default_factory=Access)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanCommand:
    """Remove part files that were not written to for `older_than` seconds."""

    target: str
    older_than: float = 0.0
    access: Access = field(default_factory=Access)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeCommand:
    """Serve directories over HTTP, or print the description of the interface; the fields are those of Settings."""

    roots: tuple[RootSpec, ...] = ()
    addresses: tuple[str, ...] = ()
    port: int
    plain: bool = False
    plain_anywhere: bool = False
    token_file: Path | None = None
    certificate: Path | None = None
    connections: int
    most_body: int
    patience: float
    openapi: bool = False
    output: Output = field(default_factory=Output)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoCommand:
    """Show a move over a hostile link, without a node; `size` is in bytes."""

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionCommand:
    """Print a shell's completion script."""

    shell: Shell


Command = (
    AutoCommand
    | PlanCommand
    | ProbeCommand
    | PluginsCommand
    | NewPluginCommand
    | NodesCommand
    | CleanCommand
    | ServeCommand
    | DemoCommand
    | CompletionCommand
)


def parse(argv: Sequence[str]) -> Command:
    """Read a command line. Raises UsageError; ends with SystemExit after --help and --version."""
    check_command(argv)
    words, strays = build_parser().parse_known_args(argv)
    if strays:
        what = "unknown option" if strays[0].startswith("-") else "this word is out of place:"
        raise UsageError(f"{what} {printable(strays[0])}", remedy=f"See `rrmove {words.command} --help`")
    return _command(words)


def _command(words: argparse.Namespace) -> Command:  # noqa: C901  a case for each command
    parsed: Command
    match words.command:
        case "auto":
            parsed = AutoCommand(
                source=words.source,
                targets=tuple(words.targets),
                at_once=words.at_once,
                options=_options(words),
                access=_access(words),
                output=_output(words),
            )
        case "plan":
            parsed = PlanCommand(
                source=words.source,
                targets=tuple(words.targets),
                options=_options(words),
                access=_access(words),
                output=_output(words),
            )
        case "probe":
            parsed = ProbeCommand(nodes=tuple(words.nodes_named), access=_access(words), output=_output(words))
        case "plugins":
            parsed = PluginsCommand(name=words.name, plugins=tuple(words.plugins or ()), output=_output(words))
        case "plugin":
            parsed = NewPluginCommand(name=words.name, directory=words.directory)
        case "nodes":
            parsed = NodesCommand(names=words.names, access=_access(words), output=_output(words))
        case "clean":
            parsed = CleanCommand(
                target=words.target,
                older_than=words.older_than,
                access=_access(words),
                output=_output(words),
            )
        case "serve":
            parsed = ServeCommand(
                roots=tuple(words.roots or ()),
                addresses=tuple(words.addresses or ()),
                port=words.port,
                plain=words.plain,
                plain_anywhere=words.plain_anywhere,
                token_file=words.token_file,
                certificate=words.certificate,
                connections=words.max_connections,
                most_body=words.max_body,
                patience=words.patience,
                openapi=words.openapi,
                output=_output(words),
            )
        case "demo":
            parsed = DemoCommand(size=words.size)
        case "completion":
            parsed = CompletionCommand(shell=words.shell)
        case _:
            raise UsageError("no command was given", remedy="See `rrmove --help`")
    return parsed


def _options(words: argparse.Namespace) -> Options:
    only, without = _names(words.only), _names(words.without)
    if both := sorted(set(only) & set(without)):
        raise UsageError(
            f"{both[0]} is in --only and in --without",
            remedy="Name each transport in one of them",
        )
    return Options(
        only=only,
        without=without,
        limit_rate=words.limit_rate,
        deadline=words.deadline,
        priority=words.priority or PRIORITY,
        sha256=words.sha256,
        settings=tuple(given(name, value) for name, value in words.settings or ()),
        plugins=tuple(words.plugins or ()),
        mirrors=tuple(words.mirrors or ()),
    )


def _names(lists: list[tuple[str, ...]] | None) -> tuple[str, ...]:
    """Join what a repeated option collected; the first mention of a name counts."""
    return tuple(dict.fromkeys(name for names in lists or () for name in names))


def _access(words: argparse.Namespace) -> Access:
    return Access(
        nodes=words.nodes,
        ssh_config=words.ssh_config,
        ssh=cast("SSH", getattr(words, "ssh", "auto")),
    )


def _output(words: argparse.Namespace) -> Output:
    return Output(
        json=words.json,
        quiet=getattr(words, "quiet", False),
        verbose=getattr(words, "verbose", False),
    )
