"""Hooks that name nodes, add addresses, make files ready and judge them: in real moves, well and badly behaved."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import rrmove
from rrmove import hooks
from rrmove.events import Committed, Event, Planned, Verified
from rrmove.inventory import Inventory, load_inventory
from rrmove.model import Address, Node, SSHSettings
from rrmove.testing import EmbeddedNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Install = Callable[[str], None]


@pytest.fixture(scope="module")
def node() -> Iterator[EmbeddedNode]:
    with EmbeddedNode() as opened:
        yield opened


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Give a function that installs a module of hooks as a distribution `guest`."""
    site = tmp_path / "site"
    info = site / "guest-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[rrmove.hooks]\nits = guest_hooks\n")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def installed(text: str) -> None:
        (site / "guest_hooks.py").write_text(
            f"import pathlib, time\nimport rrmove\nfrom rrmove import hookimpl\n{text}"
        )
        monkeypatch.syspath_prepend(str(site))

    yield installed
    sys.modules.pop("guest_hooks", None)


def source_of(tmp_path: Path, content: bytes = b"x" * 100_000) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    return path


async def move(
    path: Path, node: EmbeddedNode, **wishes: Any
) -> tuple[rrmove.Outcome | rrmove.RRMoveError, list[Event]]:
    seen: list[Event] = []
    place = Node(name="embedded", ssh=SSHSettings(config=node.ssh_config))
    try:
        return await rrmove.move(path, place, on_event=seen.append, **wishes), seen
    except rrmove.RRMoveError as error:
        return error, seen


def nothing_is_there(node: EmbeddedNode, seen: list[Event]) -> bool:
    return not (node.home / "model.bin").exists() and not any(isinstance(event, Committed) for event in seen)


BAD = {
    "a reason": ("return 'it does not open'", "turns .*model.bin.* down: it does not open"),
    "raising": ("raise ValueError('boom')", "failed over .*: ValueError: boom"),
    "leaving": ("raise SystemExit(0)", "failed over .*: SystemExit: 0"),
    "nonsense": ("return True", "answered True over"),
    "empty": ("return ''", "answered '' over"),
    "hanging": ("time.sleep(60)", "did not judge .* within 0 s"),
}


@pytest.mark.parametrize("hook", ["rrmove_validate", "rrmove_prepare"])
@pytest.mark.parametrize("kind", BAD)
async def test_who_turns_a_file_down_or_cannot_judge_is_named_and_nothing_is_committed(
    kind: str, hook: str, node: EmbeddedNode, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, said = BAD[kind]
    install(f"@hookimpl\ndef {hook}(source):\n    {body}\n")
    if kind == "hanging":
        monkeypatch.setattr(hooks, "JUDGING_TIME", 0.2)
    began = time.monotonic()
    error, seen = await move(source_of(tmp_path), node)
    assert isinstance(error, rrmove.RejectedError)
    assert error.exit_code == 5
    with pytest.raises(rrmove.RejectedError, match=f"(?s){hook} of guest:its {said}.*nothing was committed.*guest out"):
        raise error
    assert error.outcome is not None
    assert not error.outcome.ok
    assert nothing_is_there(node, seen)
    assert time.monotonic() - began < 20
    if hook == "rrmove_prepare":
        assert not any(isinstance(event, Planned) for event in seen)  # it was not even begun


async def test_what_is_turned_down_while_it_is_sent_is_sent_no_further(
    node: EmbeddedNode, install: Install, tmp_path: Path
) -> None:
    install("@hookimpl\ndef rrmove_validate(source):\n    time.sleep(0.5)\n    return 'it does not open'\n")
    path = source_of(tmp_path, os.urandom(20_000_000))
    place = Node(name="embedded", ssh=SSHSettings(config=node.ssh_config))
    began, before = time.monotonic(), node.bytes_in
    with pytest.raises(rrmove.RejectedError):
        await rrmove.move(path, place, limit_rate=1e6)  # for 20 s
    assert time.monotonic() - began < 10
    assert node.bytes_in - before < 10_000_000
    assert not (node.home / "model.bin").exists()


async def test_a_file_that_is_there_already_is_judged_too(node: EmbeddedNode, install: Install, tmp_path: Path) -> None:
    (node.home / "model.bin").write_bytes(b"x" * 100_000)
    install("@hookimpl\ndef rrmove_validate(source):\n    return 'it does not open'\n")
    error, _ = await move(source_of(tmp_path), node)
    assert isinstance(error, rrmove.RejectedError)
    (node.home / "model.bin").unlink()


async def test_the_verdict_comes_between_verification_and_the_commit(
    node: EmbeddedNode, install: Install, tmp_path: Path
) -> None:
    # It lasts longer than all the rest, and sees the part file complete but not renamed.
    install(
        "@hookimpl\ndef rrmove_validate(source):\n"
        f"    home = pathlib.Path({str(node.home)!r})\n"
        "    while not any(part.stat().st_blocks for part in home.glob('.*.rrmove-part')):\n        time.sleep(0.01)\n"
        "    time.sleep(0.3)\n"
        f'    pathlib.Path({str(tmp_path / "seen")!r}).write_text(f"{{source.name}} {{source.size}} "\n'
        "        f\"{(home / 'model.bin').exists()}\")\n"
    )
    outcome, seen = await move(source_of(tmp_path), node)
    assert isinstance(outcome, rrmove.Outcome)
    assert (tmp_path / "seen").read_text() == "model.bin 100000 False"
    kinds = [type(event) for event in seen if isinstance(event, Verified | Committed)]
    assert kinds == [Verified, Committed]
    assert (node.home / "model.bin").read_bytes() == b"x" * 100_000
    (node.home / "model.bin").unlink()


async def test_what_is_prepared_is_what_is_sent(node: EmbeddedNode, install: Install, tmp_path: Path) -> None:
    install("@hookimpl\ndef rrmove_prepare(source):\n    source.path.write_bytes(b'ready')\n")
    path = source_of(tmp_path)
    place = Node(name="embedded", ssh=SSHSettings(config=node.ssh_config))
    before = path.read_bytes()
    await rrmove.preview(path, place)
    assert path.read_bytes() == before  # a plan changes nothing
    outcome, _ = await move(path, node)
    assert isinstance(outcome, rrmove.Outcome)
    assert outcome.request.source.size == 5
    assert (node.home / "model.bin").read_bytes() == b"ready"
    (node.home / "model.bin").unlink()


async def test_a_file_that_changes_while_it_is_judged_is_not_committed(
    node: EmbeddedNode, install: Install, tmp_path: Path
) -> None:
    overwrite = "with open(source.path, 'r+b') as file:\n        file.write(b'y' * 100_000)"
    install(f"@hookimpl\ndef rrmove_validate(source):\n    {overwrite}\n")
    error, seen = await move(source_of(tmp_path), node)
    assert isinstance(error, rrmove.RRMoveError)
    assert "was changed" in str(error)
    assert nothing_is_there(node, seen)


ADDRESSES = """
@hookimpl
def rrmove_addresses(node):
    found = [rrmove.Address("100.64.0.9", "tailscale")]
    {more}
    return found
"""


@pytest.mark.parametrize("more", ["", "found += [7]", "raise OSError('no daemon')", "found += node.addresses"])
async def test_addresses_are_added_to_those_that_are_known(
    more: str, node: EmbeddedNode, install: Install, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    install(ADDRESSES.format(more=more))
    known = Address("10.0.0.1", "lan")
    place = Node(name="embedded", ssh=SSHSettings(config=node.ssh_config), addresses=(known,))
    outcome = await rrmove.move(source_of(tmp_path), place)
    found = outcome.request.node.addresses
    assert found[0] == known
    assert found[1:] == (() if "raise" in more else (Address("100.64.0.9", "tailscale"),))
    said = capfd.readouterr().err
    assert ("rrmove_addresses of guest:its" in said) == ("7" in more or "raise" in more)
    (node.home / "model.bin").unlink()


NODES = """
@hookimpl
def rrmove_nodes():
    time.sleep({late})
    ssh = rrmove.SSHSettings(host="embedded")
    remote = rrmove.Node(name="remote-1", ssh=ssh, tags=frozenset({{"gpu"}}))
    mine = rrmove.Node(name="mine", ssh=rrmove.SSHSettings(host="elsewhere"))
    return [remote, mine, rrmove.Node(name="-oProxyCommand=x"), "no node"]
"""


async def test_nodes_can_be_named_and_moved_to(
    node: EmbeddedNode, install: Install, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    install(NODES.format(late=0))
    file = tmp_path / "rrmove.toml"
    file.write_text('[defaults]\ndest = "inbox/"\n[nodes.mine]\nhost = "embedded"\n')
    inventory = load_inventory(file, ssh_config=node.ssh_config)
    assert inventory.names() == ("mine", "embedded", "remote-1")
    ((found, destination),) = inventory.resolve("@gpu")
    assert (found.name, found.ssh.config, destination) == ("remote-1", node.ssh_config, "inbox/")
    assert inventory.resolve("remote-1:/x")[0][1] == "/x"
    assert inventory.resolve("mine")[0][0].ssh.host == "embedded"  # the file's word comes first
    with pytest.raises(rrmove.UsageError, match="remote-1"):
        inventory.resolve("remote-2")
    rows = {row.name: row.origin for row in inventory.listing()}
    assert rows["remote-1"] == "guest:its"
    assert "'no node' is no Node" in capfd.readouterr().err
    outcome = await rrmove.move(source_of(tmp_path), "remote-1", inventory=inventory)
    assert (node.home / "inbox/model.bin").read_bytes() == b"x" * 100_000
    assert outcome.ok


def test_who_is_late_with_nodes_is_ignored(
    install: Install, node: EmbeddedNode, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    install(NODES.format(late=20))
    monkeypatch.setattr(hooks, "ANSWER_TIME", 0.2)
    assert load_inventory(ssh_config=node.ssh_config).names() == ("embedded",)
    assert "did not answer within 0.2 s" in capfd.readouterr().err


def test_nobody_is_asked_for_a_name_that_the_files_have() -> None:
    def asked() -> dict[str, tuple[Node, str]]:
        raise AssertionError("plugins were asked")

    inventory = Inventory(nodes={"mine": Node(name="mine")}, ssh_hosts=("host",), others=asked)
    assert inventory.resolve("a@192.0.2.1")[0][0].name == "192.0.2.1"
    assert inventory.resolve("host.example.com")[0][0].name == "host.example.com"
    assert inventory.resolve("mine")[0][0].name == "mine"
    assert inventory.resolve("host")[0][0].name == "host"


def test_nothing_is_left_over() -> None:
    assert "guest_hooks" not in sys.modules
    assert os.environ.get("RRMOVE_PLUGINS") is None
