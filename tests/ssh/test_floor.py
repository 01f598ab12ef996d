"""The shell floor and the agent: one suite over both, so that they speak the same language."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rrmove.errors import Fatal, RRMoveError, Transient, Unusable
from rrmove.model import Node
from rrmove.session import FilePart, Lane
from rrmove.ssh import agent
from rrmove.ssh.failures import StaleError
from rrmove.ssh.floor import FloorLane
from rrmove.ssh.lane import AgentLane
from rrmove.ssh.tools import Plain, Seen, encode_word, errno_of, free_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ID = "0123456789ab"
KIB = 1024
ODD_NAMES = (
    "plain.bin",
    "two words",
    "quote'd",
    'double"quoted',
    "$(touch pwned)",
    "`touch pwned`",
    "line\nfeed",
    "ends in line feeds\n\n",
    "back\\slash\\0101\\c",
    "-n",
    "star*[a-z]?",
    "; touch pwned #",
    "~",
    "ümlaut-漢字",
    os.fsdecode(b"not-utf8-\xff\xfe\x81\x82\x88"),
    os.fsdecode(bytes(b for b in range(1, 256) if b != ord("/"))[:200]),
)


class LocalChannel:
    """A command on this machine instead of a node: the Channel protocol over a process."""

    def __init__(self, command: str, *, env: dict[str, str], cwd: Path, trickle: int = 0, login: str = "sh") -> None:
        self.trickle = trickle
        shell = shutil.which(login, path=env["PATH"])
        assert shell
        self.words = subprocess.DEVNULL
        self.process = subprocess.Popen(
            [shell, "-c", command], env=env, cwd=cwd, bufsize=0, stdin=-1, stdout=-1, start_new_session=True
        )
        assert self.process.stdin
        assert self.process.stdout
        self.sink = self.process.stdin.fileno()
        self.reader = os.fdopen(os.dup(self.process.stdout.fileno()), "rb")
        self.killing = threading.Lock()

    def read(self, size: int) -> bytes:
        return self.reader.read(size)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            piece = view[: self.trickle] if self.trickle else view
            view = view[os.write(self.sink, piece) :]
            if self.trickle:
                time.sleep(0.002)

    def write_file(self, fd: int, offset: int, length: int) -> None:
        self.write(os.pread(fd, length, offset))

    def hang_up(self) -> None:
        """End the connection as a reset does: the pipes are gone, the processes are not told."""
        assert self.process.stdin
        self.process.stdin.close()

    def kill(self) -> None:
        with self.killing:
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        self.kill()
        self.reader.close()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            stream.close()

    def cause(self) -> RRMoveError:
        return Transient("the connection was lost")


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Make one PATH for each kind of node; `sh` leads to another shell in each."""
    found: dict[str, str] = {}
    here = "/usr/local/bin:/usr/bin:/bin"
    for shell in ("dash", "bash", "agent"):
        folder = tmp_path_factory.mktemp(shell)
        program = shutil.which("dash" if shell == "agent" else shell, path=here)
        if program is None:
            continue
        (folder / "sh").symlink_to(program)
        if shell == "agent":
            (folder / "python3").symlink_to(sys.executable)
        found[shell] = f"{folder}:{here}"
    busybox = shutil.which("busybox")
    if busybox is not None:
        applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
        # busybox's own shell may run its applets whatever PATH says, so what is missing is missing for dash.
        fewer = {"sha256sum", "stat", "head", "timeout", "readlink", "mktemp", "fuser"}
        dash = shutil.which("dash", path=here)
        for name, missing in {"busybox": set[str](), "bare": fewer, "ancient": fewer | {"dd", "nc"}}.items():
            if missing and dash is None:
                continue
            folder = tmp_path_factory.mktemp(name)
            for applet in set(applets) - missing:
                (folder / applet).symlink_to(busybox)
            if missing and dash is not None:
                (folder / "sh").unlink()
                (folder / "sh").symlink_to(dash)
            if "dd" in missing:
                (folder / "dd").write_text(
                    f'#!{dash}\ncase "$*" in *flag* | *fsync*) echo dd: unknown operand >&2; exit 1 ;; esac\n'
                    f'exec {busybox} dd "$@"\n'
                )
                (folder / "dd").chmod(0o755)
            found[name] = str(folder)
    return found


KINDS = ("agent", "dash", "bash", "busybox", "bare", "ancient")
POOR = {"bare", "ancient"}  # without stat, for example
FLOORS = KINDS[1:]
CAMPAIGN = {"bash": pytest.param("bash", marks=pytest.mark.campaign)}  # the least unlike another one


class Place:
    """A home on the 'node', and how lanes to it are opened."""

    def __init__(self, kind: str, path: str, home: Path) -> None:
        self.kind, self.home = kind, home
        self.env = {"PATH": path, "HOME": str(home), "SSH_CONNECTION": "10.0.0.1 4711 10.0.0.2 22"}
        self.channels: list[LocalChannel] = []
        self.trickle = 0
        self.wrap: Callable[[str], str] = lambda command: command

    def lane(self) -> AgentLane | FloorLane:
        def start(command: str) -> LocalChannel:
            channel = LocalChannel(self.wrap(command), env=self.env, cwd=self.home, trickle=self.trickle)
            self.channels.append(channel)
            return channel

        return (AgentLane if self.kind == "agent" else FloorLane)(start, Node(name="n1"))


def place_of(kind: str, paths: dict[str, str], home: Path) -> Place:
    if kind not in paths:
        pytest.skip(f"{kind} is not installed")
    home.mkdir(exist_ok=True)
    return Place(kind, paths[kind], home)


@pytest.fixture(params=[CAMPAIGN.get(kind, kind) for kind in KINDS])
def place(request: pytest.FixtureRequest, paths: dict[str, str], tmp_path: Path) -> Place:
    return place_of(request.param, paths, tmp_path / "home")


@pytest.fixture(params=[CAMPAIGN.get(kind, kind) for kind in FLOORS])
def floor(request: pytest.FixtureRequest, paths: dict[str, str], tmp_path: Path) -> Place:
    return place_of(request.param, paths, tmp_path / "home")


@pytest.fixture
async def lane(place: Place) -> AsyncIterator[Lane]:
    lane = place.lane()
    await lane.ready()
    yield lane
    await lane.close()
    for channel in place.channels:
        assert channel.process.returncode is not None


async def make_part(lane: Lane, name: str, size: int, *, need: int = 0) -> dict[str, Any]:
    found = dict((await lane.call("locate", destination=name, name="source.bin", key=ID)).fields)
    opened = await lane.call("open", part=found["part"], journal=found["journal"], note={}, size=size, need=need)
    return {**found, **opened.fields}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def body(size: int, seed: int = 1) -> bytes:
    return (hashlib.shake_128(str(seed).encode()).digest(min(size, 65521)) * (size // 65521 + 1))[:size]


async def test_hello_sends_every_byte_there_and_back(lane: Lane, place: Place) -> None:
    everything = bytes(range(256))
    reply = await lane.call("hello", everything)
    assert reply.body == everything
    assert reply.fields["clean"] is True
    assert reply.fields["client"] == place.env["SSH_CONNECTION"]
    assert isinstance(reply.fields["pid"], int)
    assert bool(reply.fields["python"]) == (place.kind == "agent")
    assert (await lane.call("hello")).fields["clean"] is False


async def test_any_name_arrives(lane: Lane, place: Place) -> None:
    for number, name in enumerate(ODD_NAMES):
        await move_to(lane, place.home / str(number), name)
    assert "pwned" not in {path.name for path in place.home.rglob("*")}


async def move_to(lane: Lane, home: Path, name: str) -> None:
    data = body(70_000)
    destination = str(home / "sub" / name)
    found = await make_part(lane, destination, len(data))
    assert found["target"] == destination
    await lane.call("put", data, part=found["part"], at=0)
    digests = (await lane.call("hash", path=found["part"], spans=[[0, len(data)]])).fields
    assert digests["digests"] == [digest(data)]
    answer = await lane.call(
        "commit", part=found["part"], journal=found["journal"], target=found["target"], size=len(data),
        ino=found["ino"], mode=0o640, mtime_ns=1_700_000_000 * 10**9, check=[[0, len(data), digest(data)]],
    )  # fmt: skip
    assert answer.fields["target"] == destination
    target = Path(destination)
    assert target.read_bytes() == data
    assert target.stat().st_mode & 0o7777 == 0o640
    assert int(target.stat().st_mtime) == 1_700_000_000
    assert [path.name for path in target.parent.iterdir()] == [name]


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 3 * KIB * KIB + 1])
async def test_any_size_arrives(lane: Lane, place: Place, size: int) -> None:
    slow(place, size)
    data = body(size, seed=size)
    found = await make_part(lane, "file.bin", size)
    source = place.home.parent / "source"
    source.write_bytes(data)
    with source.open("rb") as file:
        await asyncio.gather(
            *(
                lane.call("put", FilePart(file.fileno(), at, min(1 << 20, size - at)), part=found["part"], at=at)
                for at in range(0, size, 1 << 20)
            )
        )
    assert Path(found["part"]).read_bytes() == data
    spans = [[at, min(65536, size - at)] for at in range(0, size, 65536)] + [[0, size], [1, size], [size, 1]]
    reply = await lane.call("hash", path=found["part"], spans=spans)
    assert reply.fields["digests"] == [digest(data[a : a + n]) if a + n <= size else None for a, n in spans]
    assert reply.fields["size"] == size
    assert reply.fields["ino"] == found["ino"]
    await commit(lane, found, size, [])
    assert (place.home / "file.bin").read_bytes() == data
    assert not Path(found["journal"]).exists()


def slow(place: Place, size: int) -> None:
    if place.kind == "ancient" and size > KIB * KIB:
        pytest.skip("a byte at a time takes too long")


async def commit(lane: Lane, found: dict[str, Any], size: int, check: list[Any]) -> None:
    await lane.call(
        "commit", part=found["part"], journal=found["journal"], target=found["target"], size=size,
        ino=found["ino"], mode=0o644, mtime_ns=0, check=check,
    )  # fmt: skip


@pytest.mark.parametrize("at", [0, 1, 4095, 65536, 65537, 1_000_001])
async def test_any_offset_is_written_and_read(lane: Lane, at: int) -> None:
    found = await make_part(lane, "file.bin", 2_000_000)
    data = body(65_000, seed=at)
    await lane.call("put", data, part=found["part"], at=at)
    whole = Path(found["part"]).read_bytes()
    assert len(whole) == 2_000_000
    assert whole == bytes(at) + data + bytes(2_000_000 - at - len(data))
    assert (await lane.call("get", path=found["part"], at=at, length=len(data))).body == data
    assert (await lane.call("get", path=found["part"], at=1_999_990, length=100)).body == bytes(10)
    assert (await lane.call("get", path=found["part"], at=2_000_001, length=100)).body == b""
    reply = await lane.call("hash", path=found["part"], spans=[[at, len(data)], [at + 7, 99]])
    assert reply.fields["digests"] == [digest(data), digest(data[7:106])]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    writes=st.lists(
        st.tuples(st.integers(0, 200_000), st.binary(max_size=40) | st.integers(0, 99).map(lambda n: body(n * 997))),
        max_size=6,
    )
)
def test_writes_add_up_like_those_of_an_array(
    kind: str, paths: dict[str, str], tmp_path: Path, writes: list[tuple[int, bytes]]
) -> None:
    async def run() -> None:
        home = place_of(kind, paths, tmp_path / "home")
        lane = home.lane()
        try:
            found = await make_part(lane, "file.bin", 300_000)
            await lane.call("trim", part=found["part"], size=0)
            await lane.call("trim", part=found["part"], size=300_000)
            model = bytearray(300_000)
            for at, data in writes:
                model[at : at + len(data)] = data
            await asyncio.gather(*(lane.call("put", data, part=found["part"], at=at) for at, data in writes))
            assert Path(found["part"]).read_bytes() == model
        finally:
            await lane.close()

    asyncio.run(run())


async def test_trickling_input_arrives(place: Place) -> None:
    place.trickle = 701
    lane = place.lane()
    found = await make_part(lane, "file.bin", 200_000)
    data = body(140_001)
    await lane.call("put", data[:70_000], part=found["part"], at=3)
    await lane.call("put", data[70_000:], part=found["part"], at=70_003)
    assert Path(found["part"]).read_bytes() == bytes(3) + data + bytes(200_000 - 3 - len(data))
    await lane.close()


async def test_locate_tells_what_is_there(lane: Lane, place: Place) -> None:
    (place.home / "folder").mkdir()
    (place.home / "there.bin").write_bytes(b"old content")
    (place.home / "there.bin").chmod(0o600)
    os.utime(place.home / "there.bin", (1_600_000_000, 1_600_000_000))
    (place.home / "link").symlink_to("folder")
    home = str(place.home)

    async def locate(destination: str) -> dict[str, Any]:
        return dict((await lane.call("locate", destination=destination, name="source.bin", key=ID)).fields)

    for destination, target in {
        "": f"{home}/source.bin",
        "~": f"{home}/source.bin",
        "~/x": f"{home}/x",
        "folder": f"{home}/folder/source.bin",
        "folder/": f"{home}/folder/source.bin",
        "new/deep/": f"{home}/new/deep/source.bin",
        "new/./a/../b": f"{home}/new/b",
        f"{home}//y": f"{home}/y",
        "link/z": f"{home}/folder/z",
        "link": f"{home}/folder/source.bin",
        "~root/q": str(Path("~root").expanduser().resolve() / "q"),
        "~nobody-of-that-name/q": f"{home}/~nobody-of-that-name/q",
        "/at-the-top": "/at-the-top",
    }.items():
        found = await locate(destination)
        assert found["target"] == target, destination
        directory, _, base = target.rpartition("/")
        assert found["directory"] == (directory or "/")
        assert found["part"] == f"{directory}/.{base}.{ID}.rrmove-part"
        assert found["journal"] == f"{directory}/.{base}.{ID}.rrmove-journal"

    missing = await locate("new/deep/x")
    assert (missing["size"], missing["kind"], missing["part_size"], missing["held"]) == (None, None, None, 0)
    assert missing["nearest"] == home
    assert missing["writable"] is True
    space = os.statvfs(home)
    assert abs(missing["free"] - space.f_bavail * space.f_frsize) < 1 << 28

    there = await locate("there.bin")
    assert (there["size"], there["kind"], there["mode"]) == (11, "file", 0o600)
    assert there.get("mtime_ns") in ({1_600_000_000 * 10**9} if place.kind not in POOR else {None})
    assert (await locate("/dev/null"))["kind"] == "other"
    long = await locate("x" * 250)
    assert Path(long["part"]).name == f".{'x' * 200}.{ID}.rrmove-part"

    found = await make_part(lane, "there.bin", 5_000_000)
    again = await locate("there.bin")
    assert again["part_size"] == 5_000_000
    assert again["held"] == (0 if place.kind not in POOR else 5_000_000)
    assert found["held"] == 0
    assert Path(found["part"]).stat().st_mode & 0o777 == 0o600


async def test_a_second_open_loses_nothing(lane: Lane) -> None:
    found = await make_part(lane, "file.bin", 100_000)
    await lane.call("put", b"kept", part=found["part"], at=50_000)
    again = await make_part(lane, "file.bin", 100_000)
    assert again["ino"] == found["ino"]
    longer = await make_part(lane, "file.bin", 200_000)
    assert longer["ino"] == found["ino"]
    data = Path(found["part"]).read_bytes()
    assert (len(data), data[50_000:50_004]) == (200_000, b"kept")


async def test_locate_opens_at_once_where_it_is_told_to(lane: Lane, place: Place) -> None:
    (place.home / "same.bin").write_bytes(b"12345")

    async def locate(name: str, size: int) -> dict[str, Any]:
        also: dict[str, Any] = {"size": size, "need": size, "note": {"size": size}}
        return dict((await lane.call("locate", destination=name, name="s", key=ID, **also)).fields)

    assert "opened" not in await locate("same.bin", 5)
    first = await locate("new/other.bin", 70_000)
    assert first["opened"]["fresh"] is True
    assert Path(first["part"]).stat().st_size == 70_000
    again = await locate("new/other.bin", 70_000)
    assert again["opened"]["fresh"] is False
    assert again["opened"]["ino"] == first["opened"]["ino"]
    with pytest.raises(Fatal, match="are missing"):
        await lane.call("locate", destination="big", name="s", key=ID, size=9, need=1 << 60, note={})


async def test_the_journal_is_the_note(lane: Lane) -> None:
    found = dict((await lane.call("locate", destination="a b", name="s", key=ID)).fields)
    note = {"target": "it's \\n $(x)\nnew", "size": 3}
    await lane.call("open", part=found["part"], journal=found["journal"], note=note, size=3, need=3)
    written = json.loads(Path(str(found["journal"])).read_text())
    assert written.pop("nonce")
    assert written == note
    assert not Path(f"{found['journal']}~").exists()


async def test_evict_shuts_data_servers_out_as_the_agent_does(lane: Lane) -> None:
    found = dict((await lane.call("locate", destination="admitted", name="s", key=ID)).fields)
    part, journal = str(found["part"]), Path(str(found["journal"]))
    await lane.call("open", part=part, journal=str(journal), note={"target": "x"}, size=3, need=3)
    note = journal.read_bytes()
    journal.write_bytes(note + agent.ADMITTED)  # as an agent leaves it that has let servers in
    assert agent.journal_of(part) == (note, True)
    await lane.call("evict", part=part)
    assert journal.read_bytes() == note
    assert agent.journal_of(part) == (note, False)


async def test_too_little_space_is_told_beforehand(lane: Lane, place: Place) -> None:
    with pytest.raises(Fatal, match=r"disk is full: .* are needed, .* are free, .* are missing"):
        await make_part(lane, "file.bin", 1 << 60, need=1 << 60)
    assert not list(place.home.iterdir())


async def test_errors_have_the_agents_names(lane: Lane, place: Place) -> None:
    (place.home / "file").write_bytes(b"x")
    home = str(place.home)
    found = await make_part(lane, "t.bin", 10)

    async def name_of(op: str, body: bytes = b"", **arguments: object) -> str:
        with pytest.raises(StaleError) as caught:
            await lane.call(op, body, **arguments)
        return caught.value.name

    gone = f"{home}/.gone.{ID}.rrmove-part"
    assert await name_of("put", b"abc" * 50_000, part=gone, at=0) == "ENOENT"
    assert await name_of("trim", part=gone, size=0) == "ENOENT"
    assert await name_of("get", path=gone, at=0, length=1) == "ENOENT"
    ending: dict[str, Any] = {"journal": found["journal"], "target": found["target"], "mode": 0o644, "mtime_ns": 0}
    assert await name_of("commit", part=gone, size=10, ino=found["ino"], check=[], **ending) == "ENOENT"
    assert await name_of("commit", part=found["part"], size=11, ino=found["ino"], check=[], **ending) == "ESTALE"
    assert await name_of("commit", part=found["part"], size=10, ino="1:1", check=[], **ending) == "ESTALE"
    wrong = [[0, 5, digest(bytes(5))], [5, 5, "0" * 64]]
    assert await name_of("commit", part=found["part"], size=10, ino=found["ino"], check=wrong, **ending) == "EBADMSG"
    assert not (place.home / "t.bin").exists()
    (place.home / "t.bin").mkdir()
    with pytest.raises(Fatal, match="Is a directory"):
        await commit(lane, found, 10, [])
    assert (await lane.call("hash", path=gone, spans=[[0, 1], [1, 1]])).fields == {
        "ino": None, "size": None, "digests": [None, None],
    }  # fmt: skip
    with pytest.raises(RRMoveError):
        await lane.call("open", part=f"{home}/file/x/.p.rrmove-part", journal=f"{home}/j", note={}, size=1, need=1)
    with pytest.raises(Unusable):
        await lane.call("fly")
    # The stream is in step after all of that.
    assert (await lane.call("hello", b"still here")).body == b"still here"


async def test_a_longer_put_than_the_part_lengthens_it(lane: Lane) -> None:
    found = await make_part(lane, "file.bin", 10)
    await lane.call("put", b"beyond", part=found["part"], at=20)
    assert Path(found["part"]).read_bytes() == bytes(20) + b"beyond"


async def test_quarantine_puts_aside(lane: Lane) -> None:
    found = await make_part(lane, "file.bin", 10)
    bad = (await lane.call("quarantine", part=found["part"], journal=found["journal"])).fields["path"]
    assert bad == found["part"].replace(".rrmove-part", ".rrmove-bad")
    assert Path(str(bad)).stat().st_size == 10
    assert not Path(found["part"]).exists()
    assert not Path(found["journal"]).exists()


async def test_sweep_removes_what_is_old_and_unused(lane: Lane, place: Place) -> None:
    if place.kind in POOR:
        pytest.skip("without stat nobody knows how old a part is: all are kept")
    below = place.home / "d" / "e" / "f"
    below.mkdir(parents=True)
    old = [
        place.home / ".a\nb.1.rrmove-part",
        place.home / "d" / ".b.1.rrmove-journal",
        place.home / "d" / ".b.1.rrmove-journal~",
        place.home / "d" / "e" / ".c.1.rrmove-bad",
    ]
    stay = [place.home / ".young.1.rrmove-part", below / ".deep.1.rrmove-part", place.home / "x.rrmove-part"]
    held = place.home / ".held.1.rrmove-part"
    for path in [*old, *stay, held]:
        path.write_bytes(b"x")
        if path != stay[0]:
            os.utime(path, (1, 1))
    with held.open("rb+"):
        fields = (await lane.call("sweep", directories=["~"], older_than=3600.0, depth=2)).fields
    assert sorted(fields["removed"]) == sorted(map(str, old))  # type: ignore[call-overload]
    assert fields["kept"] == [str(held)]
    assert {path for path in place.home.rglob("*") if path.is_file()} == {*stay, held}


async def test_evict_ends_foreign_writers_only(lane: Lane, place: Place) -> None:
    found = await make_part(lane, "file.bin", 10)
    assert (await lane.call("evict", part=found["part"])).fields["ended"] == []
    other = place.lane()
    await other.ready()
    await other.call("put", b"1", part=found["part"], at=0)
    command = ["sh", "-c", 'exec 3<>"$0"; trap "" TERM; while :; do sleep 0.2; done', found["part"]]
    writer = subprocess.Popen(command, start_new_session=True)
    await asyncio.sleep(0.3)
    waited = asyncio.create_task(asyncio.to_thread(writer.wait))
    ended = (await lane.call("evict", part=found["part"])).fields["ended"]
    await waited
    assert writer.pid in ended  # type: ignore[operator]
    await other.call("put", b"2", part=found["part"], at=1)
    assert Path(found["part"]).read_bytes()[:2] == b"12"
    await other.close()
    assert (await lane.call("evict", part=f"{place.home}/.no.rrmove-part")).fields["ended"] == []


async def test_probe_answers_all_that_answer(lane: Lane) -> None:
    began = time.monotonic()
    asks = {"echo": "echo it\\'s; echo two", "loud": "head -c 100000 /dev/zero 2>/dev/null | tr '\\0' x || :",
            "slow": "sleep 60", "cat": "cat; echo eof", "words": "echo no >&2"}  # fmt: skip
    outputs: Any = (await lane.call("probe", asks=asks)).fields["outputs"]
    assert outputs["echo"] == "it's\ntwo\n"
    assert set(outputs["loud"]) <= {"x"}
    assert len(outputs["loud"]) <= 65536
    assert outputs["cat"] == "eof\n"
    assert outputs["words"] == ""
    assert outputs.get("slow", "") == ""
    assert time.monotonic() - began < 8
    assert (await lane.call("hello", b"x")).body == b"x"


async def test_run_runs(lane: Lane) -> None:
    program = 'cat; printf %s "$1"; echo oh >&2; exit 3'
    reply = await lane.call("run", b"in\0put", argv=["sh", "-c", program, "x", "a b\n"], timeout=10)
    assert reply.body == b"in\0puta b\n"
    assert reply.fields == {"status": 3, "errors": "oh\n"}
    unread = await lane.call("run", b"x" * 300_000, argv=["true"], timeout=10)
    assert unread.fields["status"] == 0
    with pytest.raises(Unusable, match="No such file"):
        await lane.call("run", b"x" * 100, argv=["no-such-program"], timeout=10)
    with pytest.raises(StaleError) as caught:
        await lane.call("run", argv=["sleep", "60"], timeout=1)
    assert caught.value.name == "ETIMEDOUT"
    assert (await lane.call("hello", b"x")).body == b"x"


async def test_reach_tells_open_from_refused(lane: Lane, place: Place) -> None:
    if place.kind == "ancient":
        pytest.skip("nothing there could connect")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        reply = await lane.call("reach", host="127.0.0.1", port=port, timeout=1.0)
        assert reply.fields["state"] == "open"
    reply = await lane.call("reach", host="127.0.0.1", port=port, timeout=1.0)
    assert reply.fields["state"] == "refused"


async def test_reach_without_a_program_is_unusable(paths: dict[str, str], tmp_path: Path) -> None:
    lane = place_of("ancient", paths, tmp_path / "home").lane()
    with pytest.raises(Unusable, match="nc"):
        await lane.call("reach", host="127.0.0.1", port=1, timeout=1.0)
    await lane.close()


async def test_login_noise_is_passed_over(floor: Place) -> None:
    floor.wrap = lambda command: f"echo Welcome; printf 'to\\000it'; {command}"
    lane = floor.lane()
    assert (await lane.call("hello", b"x")).body == b"x"
    await lane.close()


async def test_too_much_noise_is_an_error(floor: Place) -> None:
    floor.wrap = lambda command: f"dd if=/dev/zero bs=65537 count=1 2>/dev/null; {command}"
    lane = floor.lane()
    with pytest.raises(Transient, match="something else"):
        await lane.ready()
    await lane.close()


@pytest.mark.parametrize("login", ["dash", "bash", "busybox-sh"])
async def test_the_command_is_one_word_to_any_login_shell(login: str, floor: Place) -> None:
    program = ["busybox", "sh"] if login == "busybox-sh" else [login]
    if shutil.which(program[0]) is None:
        pytest.skip(f"no {program[0]}")
    shell = shlex.join([str(shutil.which(program[0])), *program[1:], "-c"])
    floor.wrap = lambda command: f"{shell} {shlex.quote(command)}"
    lane = floor.lane()
    assert (await lane.call("hello", b"x")).body == b"x"
    await lane.close()


async def test_a_hang_up_leaves_nothing_running(floor: Place) -> None:
    lane = floor.lane()
    found = await make_part(lane, "file.bin", 100_000)
    channel = floor.channels[0]
    part = found["part"]
    head = f"put 99 50000 {encode_word(part)} 1000\n".encode()
    channel.write(head + body(20_000))
    await asyncio.sleep(0.3)
    lane._outbox.put(None)
    channel.hang_up()
    channel.process.wait(timeout=5)
    end = time.monotonic() + 3
    while time.monotonic() < end and processes_of(channel.process.pid):
        await asyncio.sleep(0.05)
    assert not processes_of(channel.process.pid)
    with pytest.raises(Transient):
        await lane.call("hello")
    await lane.close()
    again = floor.lane()
    assert Path(part).read_bytes()[1000:21_000] == body(20_000)
    await again.call("put", body(50_000), part=part, at=1000)
    reply = await again.call("hash", path=part, spans=[[1000, 50_000]])
    assert reply.fields["digests"] == [digest(body(50_000))]
    assert reply.fields["ino"] == found["ino"]
    await again.close()


def processes_of(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = entry.read_text().rpartition(")")[2].split()
            if int(words[3]) == session and words[0] != "Z":
                found.append(int(entry.parent.name))
    return found


async def test_a_killed_lane_is_continued_by_the_next(place: Place) -> None:
    slow(place, 4 << 20)
    lane = place.lane()
    found = await make_part(lane, "file.bin", 4 << 20)
    data = body(4 << 20)
    calls = [
        asyncio.create_task(lane.call("put", data[at : at + 65536], part=found["part"], at=at))
        for at in range(0, 4 << 20, 65536)
    ]
    await calls[3]
    place.channels[0].kill()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert any(isinstance(end, Transient) for end in ends)
    assert not lane.alive
    await lane.close()
    again = place.lane()
    spans = [[at, 65536] for at in range(0, 4 << 20, 65536)]
    digests: Any = (await again.call("hash", path=found["part"], spans=spans)).fields["digests"]
    for (at, length), seen, end in zip(spans, digests, ends, strict=True):
        if not isinstance(end, BaseException):
            assert seen == digest(data[at : at + length])
        if seen != digest(data[at : at + length]):
            await again.call("put", data[at : at + length], part=found["part"], at=at)
    await commit(again, found, 4 << 20, [])
    assert (place.home / "file.bin").read_bytes() == data
    await again.close()


async def test_beats_keep_a_slow_call_alive(floor: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrmove.ssh.calls.PATIENCE", 1.6)
    lane = floor.lane()
    await lane.ready()
    reply = await lane.call("run", argv=["sleep", "3"], timeout=20)
    assert reply.fields["status"] == 0
    await lane.close()


async def test_silence_is_death(floor: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrmove.ssh.calls.PATIENCE", 2.0)
    lane = floor.lane()
    pid = (await lane.call("hello")).fields["pid"]
    os.killpg(os.getsid(int(str(pid))), signal.SIGSTOP)
    with pytest.raises(Transient, match="silent"):
        await lane.call("hello")
    await lane.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "rrmove-test", str(where)], check=False, capture_output=True
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


async def test_a_full_disk_is_fatal_and_the_stream_stays_in_step(place: Place, small_disk: Path) -> None:
    slow(place, 4 << 20)
    lane = place.lane()
    found = await make_part(lane, f"{small_disk}/big.bin", 4 << 20)
    calls = [lane.call("put", body(1 << 20), part=found["part"], at=at) for at in range(0, 4 << 20, 1 << 20)]
    ends = await asyncio.gather(*calls, lane.call("hello", b"after"), return_exceptions=True)
    assert isinstance(ends[3], Fatal)
    assert "disk is full" in str(ends[3])
    assert getattr(ends[4], "body", None) == b"after"
    with pytest.raises(Fatal, match="disk is full"):
        await make_part(lane, f"{small_disk}/other.bin", 4 << 20, need=4 << 20)
    await lane.close()


async def test_a_directory_without_the_right_to_write_is_fatal(place: Place) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to become somebody else")
    locked = Path("/tmp") / f"rrmove-locked-{os.getpid()}-{place.kind}"
    locked.mkdir(mode=0o755)
    (locked / "old.bin").write_bytes(b"old")
    try:
        drop = shlex.join([str(shutil.which("setpriv")), "--reuid=65534", "--regid=65534", "--clear-groups"])
        place.env["HOME"] = str(locked)
        place.home = locked
        place.wrap = lambda command: f"exec {drop} sh -c {shlex.quote(command)}"
        programs = Path(place.env["PATH"].split(":")[0])
        for folder in (programs, *programs.parents):
            if not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o011)
        lane = place.lane()
        located = (await lane.call("locate", destination="old.bin", name="x", key=ID)).fields
        assert located["writable"] is False
        with pytest.raises(Fatal, match=r"no permission: .*[Pp]ermission denied"):
            await make_part(lane, "new.bin", 10)
        with pytest.raises(Fatal, match="no permission"):
            await make_part(lane, "deep/new.bin", 10)
        await lane.close()
        assert [path.name for path in locked.iterdir()] == ["old.bin"]
    finally:
        shutil.rmtree(locked)


@pytest.mark.parametrize(
    ("status", "words", "name"),
    [
        ("1", "0+0 records in\ncat: write error: No space left on device", "ENOSPC"),
        ("2", "sh: 1: cannot create /x/y: Permission denied", "EACCES"),
        ("2", "sh: 1: cannot create /x/No space left on device: Permission denied", "EACCES"),
        ("1", "mkdir: cannot create directory '/x': Read-only file system", "EROFS"),
        ("1", "mv: cannot move 'a' to 'b': Is a directory", "EISDIR"),
        ("2", "sh: 1: cannot create /x/y: Directory nonexistent", "ENOENT"),
        ("1", "stat: can't stat '/x': No such file or directory", "ENOENT"),
        ("1", "cat: write error: Disk quota exceeded", "EDQUOT"),
        ("153", "", "EFBIG"),
        ("1", "no idea", "EPROTO"),
        ("ESTALE", "whatever: Permission denied", "ESTALE"),
    ],
)
def test_words_become_errnos(status: str, words: str, name: str) -> None:
    assert errno_of(status, words) == name


@pytest.mark.parametrize(
    ("listing", "free"),
    [
        ("Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 100 40 60 40% /", 61440),
        ("Filesystem 1024-blocks Used Available Capacity Mounted on\n//srv/my share 100 140 -40 140% /a b", 0),
        ("Filesystem 1024-blocks Used Available Capacity Mounted on\nnone 0 0 0 - /proc", 0),
        ("", None),
    ],
)
def test_df_is_read(listing: str, free: int | None) -> None:
    assert free_bytes(listing) == free


def test_stat_and_ls_are_read() -> None:
    assert Seen.of("2049:77 10 8 512 81a4 12.500000000") == Seen("2049:77", 10, 4096, 0o100644, 12_500_000_000)
    assert Seen.of("2049:77 10 8 512 81a4 12").mtime_ns == 12 * 10**9
    assert Seen.of("   77 -rwxr-x--T 1 0 0 10 Jan 1 2020 a b") == Seen("0:77", 10, 10, 0o100750, None)


@given(st.binary(min_size=1))
def test_words_are_harmless(data: bytes) -> None:
    word = encode_word(data.decode("utf-8", "surrogateescape"))
    assert not set(word) - set("=\\./_-abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    assert encode_word(Plain(7)) == "7"
