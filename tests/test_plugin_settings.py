"""What transports are told: a table of values and types, who has the last word, and what errors name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest

from rrmove import API_VERSION, Capabilities, Facts, Job, Rate, Request, Settings, Size, Transport, UsageError
from rrmove.cli import main
from rrmove.cli.arguments import PluginsCommand
from rrmove.cli.plugins import describe_settings
from rrmove.cli.values import setting
from rrmove.inventory import load_inventory
from rrmove.model import Given
from rrmove.plugin_settings import declared, given, settled

if TYPE_CHECKING:
    from pathlib import Path

    from rrmove.testing import EmbeddedNode


@dataclass(frozen=True)
class Wire:
    """Settings of every kind that there is."""

    port: int = 8080
    fast: bool = False
    factor: float = 1.5
    agent: str = "curl"
    window: Size = 4_000_000
    limit: Rate = 1e6
    mode: Literal["get", "put"] = field(default="get", metadata={"help": "which verb"})
    proxy: str | None = None
    most: Size | None = None
    hosts: tuple[str, ...] = ()


class Told:
    """A transport with settings."""

    name: ClassVar[str] = "told"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[Any, ...]] = ()
    capabilities: ClassVar[Capabilities] = Capabilities(resume="none", route="ssh")
    settings: ClassVar[type[Wire]] = Wire

    def refuse(self, request: Request, facts: Facts) -> str | None:
        del request, facts
        return None

    async def send(self, job: Job) -> None:
        raise NotImplementedError


class Untold(Told):
    name = "untold"
    settings: ClassVar[Any] = None


class Strict(Told):
    name = "strict"

    @dataclass(frozen=True)
    class Pair:
        low: int = 1
        high: int = 2

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low {self.low} is above high {self.high}")

    settings: ClassVar[Any] = Pair


TRANSPORTS: dict[str, Transport] = {"told": Told(), "untold": Untold(), "strict": Strict()}


def told(*said: Given, **environ: str) -> Wire:
    return settled(TRANSPORTS, said, environ=environ).get(Wire)


GOOD: list[tuple[str, object, object]] = [
    ("port", 22, 22),
    ("port", "22", 22),
    ("fast", True, True),
    *[("fast", word, True) for word in ("true", "Yes", "on", "1")],
    *[("fast", word, False) for word in ("false", "no", "OFF", "0")],
    ("factor", 2, 2.0),
    ("factor", "2.5", 2.5),
    ("agent", "wget", "wget"),
    ("agent", "", ""),
    ("window", "4MiB", 4 << 20),
    ("window", 7, 7),
    ("limit", "50M", 50e6),
    ("limit", "400Mbit/s", 50e6),
    ("limit", 5, 5.0),
    ("mode", "put", "put"),
    ("proxy", "p:1", "p:1"),
    ("proxy", "", None),
    ("proxy", None, None),
    ("most", "1k", 1000),
    ("most", "", None),
    ("hosts", "a, b", ("a", "b")),
    ("hosts", ["a", "b"], ("a", "b")),
    ("hosts", ("a",), ("a",)),
    ("hosts", "", ()),
]
BAD: list[tuple[str, object, str]] = [
    ("port", "eighty", "a whole number"),
    ("port", 1.5, "a whole number"),
    ("port", True, "a whole number"),
    ("port", None, "a whole number"),
    ("fast", 1, "true or false"),
    ("fast", "maybe", "true or false"),
    ("factor", "nan", "a number"),
    ("factor", "inf", "a number"),
    ("factor", False, "a number"),
    ("agent", 7, "a string"),
    ("window", "50 parsecs", "a size like '50M'"),
    ("window", 1.5, "a size like '50M'"),
    ("limit", "0", "a rate like '50M'"),
    ("limit", [], "a rate like '50M'"),
    ("mode", "post", "one of get, put"),
    ("mode", 1, "one of get, put"),
    ("proxy", 7, "a string, or empty for none"),
    ("hosts", [1], "a list of strings"),
    ("hosts", {"a": 1}, "a list of strings"),
]


@pytest.mark.parametrize(("key", "value", "read"), GOOD)
def test_a_value_is_read(key: str, value: object, read: object) -> None:
    found = getattr(told(given(f"told.{key}", value)), key)
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(("key", "value", "expected"), BAD)
def test_a_value_of_another_kind_is_refused_by_name(key: str, value: object, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        told(given(f"told.{key}", value))
    assert str(caught.value) == (
        f"told.{key} must be {expected}, not {value!r} (given for this move). "
        "`rrmove plugins told` lists the settings of told"
    )


def test_nothing_said_is_the_default() -> None:
    assert told() == Wire()
    assert Settings().get(Wire) == Wire()


INVENTORY = """
[transports.told]
port = 1
agent = "all"
mode = "put"
[transports.nobody]
x = 1
[providers.cloud.transports.told]
port = 2
fast = true
[nodes.gpu]
provider = "cloud"
[nodes.gpu.transports.told]
port = 3
[nodes.plain]
"""


def inventory(tmp_path: Path, text: str = INVENTORY) -> Any:
    path = tmp_path / "rrmove.toml"
    path.write_text(text)
    ssh_config = tmp_path / "ssh_config"
    ssh_config.write_text("Host known\n")
    return load_inventory(path, ssh_config=ssh_config)


def test_the_nearest_word_holds(tmp_path: Path) -> None:
    found = inventory(tmp_path)
    gpu, plain, known = found.nodes["gpu"].settings, found.nodes["plain"].settings, found.resolve("known")[0][0]
    assert told(*known.settings) == Wire(port=1, agent="all", mode="put")
    assert told(*plain) == Wire(port=1, agent="all", mode="put")
    assert told(*gpu) == Wire(port=3, agent="all", mode="put", fast=True)
    assert told(*gpu, RRMOVE_TOLD_PORT="4", RRMOVE_TOLD_FAST="no") == Wire(port=4, agent="all", mode="put")
    assert told(*gpu, given("told.port", "5"), RRMOVE_TOLD_PORT="4").port == 5
    assert not found.nodes["gpu"].extra


def test_an_error_names_the_place(tmp_path: Path) -> None:
    text = INVENTORY.replace("port = 3", "port = 'x'")
    with pytest.raises(UsageError, match=r"told.port must be .* not 'x' \(\[nodes.gpu.transports.told\] in /.*toml\)"):
        told(*inventory(tmp_path, text).nodes["gpu"].settings)
    with pytest.raises(UsageError, match=r"told.port must be .* \(\$RRMOVE_TOLD_PORT\)"):
        told(RRMOVE_TOLD_PORT="x")


@pytest.mark.parametrize("text", ["transports = 7", "transports.told = 7", "[nodes.a]\ntransports.told = 1"])
def test_an_inventory_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"rrmove.toml, line \d: .*must be a table, not 7|not 1"):
        inventory(tmp_path, text)


UNKNOWN = [
    ("told.prot", r"told.prot is no setting of told .*Did you mean port or proxy\?"),
    ("untold.port", "untold.port is no setting of untold .*untold has no settings"),
    ("tolt.port", r"tolt.port is a setting of a transport that is not there. Did you mean told or untold\?"),
    ("port", "'port' names no setting. Write it as TRANSPORT.KEY"),
]


@pytest.mark.parametrize(("name", "said"), UNKNOWN)
def test_what_is_not_known_is_refused(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        told(given(name, "1"))


def test_what_an_inventory_says_to_a_transport_that_is_not_there_is_kept() -> None:
    assert told(Given("nobody", "x", 1, "[transports.nobody] in f")) == Wire()


def test_settings_that_do_not_fit_together_are_refused_with_the_plugins_own_words() -> None:
    with pytest.raises(UsageError, match=r"settings of strict are refused: low 5 is above high 2 \(strict.low: given"):
        told(given("strict.low", "5"))


def of(kind: object) -> Any:
    class Odd(Told):
        settings: ClassVar[Any] = kind

    return Odd()


@dataclass(frozen=True)
class NoDefault:
    port: int


@dataclass(frozen=True)
class WrongDefault:
    port: int = "x"  # type: ignore[assignment]


@dataclass(frozen=True)
class OfSets:
    port: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Unseen:
    port: Nowhere = 1  # type: ignore[name-defined]  # noqa: F821


@dataclass
class Thawed:
    port: int = 1


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (7, "is no dataclass"),
        (Wire(), "is no dataclass"),
        (Thawed, "is not frozen"),
        (NoDefault, "has no default for 'port'"),
        (WrongDefault, "has 'x' as default of 'port', which has to be a whole number"),
        (OfSets, "has 'port' of a type that nobody could write"),
        (Unseen, "has types that cannot be looked up at run time"),
    ],
)
def test_what_cannot_be_set_is_no_settings(kind: object, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        declared(of(kind))


def test_they_are_listed_with_defaults() -> None:
    lines = list(describe_settings(declared(Told())))
    table = {line.split()[0]: " ".join(line.split()) for line in lines if line}
    assert table["port"] == "port 8080 a whole number"
    assert table["mode"] == "mode get one of get, put which verb"
    assert table["hosts"] == "hosts none a list of strings"
    assert any("-o told.port=VALUE, $RRMOVE_TOLD_PORT" in line for line in lines)
    assert PluginsCommand(name="told").name == "told"


# At the command line

FILE = """
from dataclasses import dataclass
from rrmove import API_VERSION, Capabilities

@dataclass(frozen=True)
class Words:
    port: int = 8080

class Single:
    name, api_version, needs = "single", API_VERSION, ()
    capabilities = Capabilities(resume="none", route="ssh")
    settings = Words
    def refuse(self, request, facts):
        return f"it was told {request.settings.get(Words).port}"
    async def send(self, job): ...
"""


def test_one_transport_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "single.py"
    file.write_text(FILE)
    assert main(["plugins", "single", "--plugin", str(file)]) == 0
    assert "-o single.port=VALUE, $RRMOVE_SINGLE_PORT" in capsys.readouterr().out
    assert main(["plugins", "single", "--plugin", str(file), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    (setting,) = json.loads(line)["settings"]
    assert setting == {
        "name": "single.port",
        "expected": "a whole number",
        "default": 8080,
        "variable": "RRMOVE_SINGLE_PORT",
        "help": "",
    }
    assert main(["plugins", "rsync"]) == 0
    assert "-o" not in capsys.readouterr().out
    assert main(["plugins", "nobody"]) == 2
    assert "there is no transport 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "single.port=22"], "it was told 22"),
        ([], "it was told 8080"),
    ],
)
def test_what_is_said_gets_to_the_transport(
    words: list[str], said: str, tmp_path: Path, rrmove_node: EmbeddedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    file, source = tmp_path / "single.py", tmp_path / "source"
    file.write_text(FILE)
    source.write_bytes(b"x")
    argv = ["plan", str(source), "embedded", "-F", str(rrmove_node.ssh_config), "--plugin", str(file), "--json"]
    assert main([*argv, *words]) == 0
    refusals = json.loads(capsys.readouterr().out)["refusals"]
    assert {"transport": "single", "reason": said} in refusals


@pytest.mark.parametrize("word", ["port=1", "single.port", ".port=1", "single.=1", "="])
def test_what_sets_nothing(word: str) -> None:
    with pytest.raises(UsageError, match="sets nothing"):
        setting(word)
