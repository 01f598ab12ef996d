"""Lanes over connections that alter bytes: that it is noticed, and that lanes of text get everything through."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove.errors import Fatal, RRMoveError, Transient
from rrmove.session import FilePart
from rrmove.ssh.armour import Armour, agent_armour, floor_armour
from rrmove.ssh.failures import NotClean
from rrmove.ssh.floor import FloorLane
from rrmove.ssh.lane import AgentLane
from rrmove.ssh.openssh import OpenSSHChannel
from tests.ssh.local import LocalSession, processes_with, until

if TYPE_CHECKING:
    from pathlib import Path

    from rrmove.ssh.channel import Channel

EVERY_BYTE = bytes(range(256))
WAYS = {
    "seven bits": "data.translate(bytes(range(128)) * 2)",
    "question marks": "data.translate(bytes(range(128)) + b'?' * 128)",
    "no nul": "data.replace(b'\\0', b'')",
    "line ends": "data.replace(b'\\n', b'\\r\\n')",
    "flow control": "data.replace(b'\\x11', b'').replace(b'\\x13', b'')",
    "utf-8": "data.decode('utf-8', 'replace').encode()",
}
KINDS: dict[str, type[AgentLane | FloorLane]] = {"agent": AgentLane, "floor": FloorLane}


def program(expression: str) -> str:
    loop = f"import os\nwhile data := os.read(0, 65536): os.write(1, {expression})"
    return shlex.join([sys.executable, "-I", "-S", "-c", loop])


class Unclean:
    """A node that is this machine, behind programs that alter what goes in and what comes out."""

    def __init__(self, home: Path, up: str = "data", down: str = "data", path: str = "/usr/bin:/bin") -> None:
        self.home, self.up, self.down, self.path = home, program(up), program(down), path
        self.lost: list[RRMoveError] = []

    def open(self, command: str) -> OpenSSHChannel:
        node = f"env -i HOME={shlex.quote(str(self.home))} PATH={self.path} {command}"
        argv = ("sh", "-c", f"cd {shlex.quote(str(self.home))} && {self.up} | {node} | {self.down}")
        return OpenSSHChannel(argv, node=LocalSession(self.home).node, host="local")

    def lane(self, kind: str, *, text: bool) -> AgentLane | FloorLane:
        return KINDS[kind](self.open, LocalSession(self.home).node, lost=self.lost.append, text=text)


async def move(lane: AgentLane | FloorLane, home: Path, content: bytes) -> None:
    """Do what a move does: a name that is no ASCII, puts of bytes and of a file, digests, bytes read back, commit."""
    source = home / "source"
    source.write_bytes(content)
    found = (await lane.call("locate", destination="zïel ☃", name="name", key="k")).fields
    opened = await lane.call("open", part=found["part"], journal=found["journal"], note={}, size=len(content), need=0)
    half = len(content) // 2
    with source.open("rb") as file:
        await asyncio.gather(
            lane.call("put", content[:half], part=found["part"], at=0),
            lane.call("put", FilePart(file.fileno(), half, len(content) - half), part=found["part"], at=half),
        )
    digests = (await lane.call("hash", path=found["part"], spans=[[0, len(content)]])).fields["digests"]
    assert digests == [hashlib.sha256(content).hexdigest()]
    assert (await lane.call("get", path=found["part"], at=1, length=5000)).body == content[1:5001]
    await lane.call(
        "commit", part=found["part"], journal=found["journal"], target=found["target"], size=len(content),
        ino=opened.fields["ino"], mode=0o600, mtime_ns=10**18, check=[],
    )  # fmt: skip
    assert (home / "zïel ☃").read_bytes() == content


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
async def test_it_is_noticed_and_text_gets_through(way: str, kind: str, tmp_path: Path) -> None:
    node = Unclean(tmp_path, up=WAYS[way], down=WAYS[way])
    lane = node.lane(kind, text=False)
    with pytest.raises(NotClean):
        await lane.call("hello")
    assert [type(error) for error in node.lost] == [NotClean]
    await lane.close()
    lane = node.lane(kind, text=True)
    await move(lane, tmp_path, EVERY_BYTE * 4 + os.urandom(100_000))
    assert lane.alive
    await lane.close()
    assert until(lambda: not processes_with(str(tmp_path)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["seven bits", "no nul"])
async def test_one_way_is_enough_to_be_noticed(way: str, kind: str, tmp_path: Path) -> None:
    for node in (Unclean(tmp_path, up=WAYS[way]), Unclean(tmp_path, down=WAYS[way])):
        lane = node.lane(kind, text=False)
        with pytest.raises(NotClean):
            await lane.call("hello")
        await lane.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_channel_that_is_clean_carries_text_as_well(kind: str, tmp_path: Path) -> None:
    lane = Unclean(tmp_path).lane(kind, text=True)
    await move(lane, tmp_path, os.urandom(300_001))
    assert lane.carried < 400_000 + 50_000
    await lane.close()


async def test_what_a_login_says_first_is_passed_over(tmp_path: Path) -> None:
    node = Unclean(tmp_path, up=WAYS["seven bits"], down=WAYS["seven bits"])

    def noisy(command: str) -> OpenSSHChannel:
        return node.open(f"sh -c 'echo ~ welcome; printf half; exec \"$@\"' sh {command}")

    for kind in KINDS.values():
        lane = kind(noisy, LocalSession(tmp_path).node, text=True)
        assert (await lane.call("hello", EVERY_BYTE)).body == EVERY_BYTE
        await lane.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_where_text_is_altered_too_nothing_helps(kind: str, tmp_path: Path) -> None:
    lane = Unclean(tmp_path, down="data.replace(b'A', b'B')").lane(kind, text=True)
    with pytest.raises(RRMoveError) as caught:
        await lane.call("hello", EVERY_BYTE)
    assert isinstance(caught.value, Fatal | Transient)
    await lane.close()


async def test_a_floor_without_a_decoder_says_so(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dd", "cat", "cksum", "head", "stat"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    lane = Unclean(tmp_path, path=str(tools)).lane("floor", text=True)
    with pytest.raises(Fatal, match="not even text gets through"):
        await lane.call("hello")
    await lane.close()


def test_the_first_lines_are_text() -> None:
    for line in (agent_armour(), floor_armour()):
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert line.isascii()
        assert all(byte >= 0x20 for byte in line[:-1])
        assert len(line) < 2000


class Memory:
    """A channel whose far end is a buffer."""

    def __init__(self, said: bytes = b"") -> None:
        self.said, self.written = said, b""

    def read(self, size: int) -> bytes:
        piece, self.said = self.said[:size], self.said[size:]
        return piece

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def write_file(self, fd: int, offset: int, length: int) -> None:
        raise AssertionError((fd, offset, length))

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass

    def cause(self) -> RRMoveError:
        return Transient("cut")


def test_lines_are_short_and_whole() -> None:
    inner: Channel = Memory()
    armour = Armour(inner)
    armour.write(b"far end\n" + EVERY_BYTE)
    armour.write(EVERY_BYTE * 100)
    assert isinstance(inner, Memory)
    first, *lines = inner.written.split(b"\n")
    assert first == b"far end"
    assert lines.pop() == b""
    assert all(len(line) <= 4001 and line.startswith(b"~") for line in lines)
    echo = Armour(Memory(b"noise\n" + inner.written.split(b"\n", 1)[1]))
    assert echo.read(6) == b"noise\n"
    assert echo.read(256 * 101 + 1) == EVERY_BYTE * 101
    assert echo.read(1) == b""


@given(
    pieces=st.lists(st.binary(max_size=9000), max_size=6),
    noise=st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"").lstrip(b"~")), max_size=3),
    size=st.integers(1, 7000),
)
def test_what_goes_in_comes_out_however_it_is_cut(pieces: list[bytes], noise: list[bytes], size: int) -> None:
    inner = Memory()
    armour = Armour(inner)
    armour.write(b"far end\n")
    for piece in pieces:
        armour.write(piece)
    greeting = b"".join(line + b"\r\n" for line in noise)
    echo = Armour(Memory(greeting + inner.written.removeprefix(b"far end\n")))
    assert b"".join(iter(lambda: echo.read(size), b"")) == greeting + b"".join(pieces)


@pytest.mark.parametrize("line", [b"~AAA\n", b"~?AAA\n", b"~\xff\n"])
def test_a_line_that_is_no_base64_is_no_answer(line: bytes) -> None:
    with pytest.raises(Transient, match="mangled"):
        Armour(Memory(line)).read(1)
