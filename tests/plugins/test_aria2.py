"""aria2 with a real aria2c on the node: mirrors, resume in both directions, its ends, and what is left of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rrmove
from rrmove import Range
from rrmove.aria2c.control import control_file, ranges_there
from rrmove.errors import Fatal, IntegrityError, TransportError, Unusable
from rrmove.events import Event, Progressed
from rrmove.model import Node, Outcome, SSHSettings
from rrmove.testing import EmbeddedNode
from rrmove_plugins.chunked import Chunked
from tests.plugins.moves import holds, until
from tests.ssh.local import alive, processes_with
from tests.web import Page, Web

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.usefixtures("own_experience"),
    pytest.mark.skipif(shutil.which("aria2c") is None, reason="no aria2c here"),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here"),
]

MB = 1_000_000
GRAIN = 2 << 20
DATA = os.urandom(24 * MB)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.pth"
    path.write_bytes(DATA)
    return path


@pytest.fixture(scope="module")
def opened() -> Iterator[EmbeddedNode]:
    with EmbeddedNode() as node:
        yield node


@pytest.fixture
def embedded(opened: EmbeddedNode) -> EmbeddedNode:
    """The node, empty."""
    for path in opened.home.iterdir():
        path.unlink()
    return opened


def node_of(embedded: EmbeddedNode) -> Node:
    return Node(name="embedded", ssh=SSHSettings(host="embedded", config=embedded.ssh_config))


async def move(source: Path | str, embedded: EmbeddedNode, *ways: str, **wishes: Any) -> Outcome:
    return await rrmove.move(source, node_of(embedded), only=ways or ("aria2",), **wishes)


def arrived(embedded: EmbeddedNode) -> bool:
    return holds(embedded, DATA)


def daemons(node: EmbeddedNode) -> list[int]:
    return [pid for pid, words in node.processes().items() if "--conf-path=" in words]


def aside(node: EmbeddedNode) -> list[Path]:
    """The directories of leased programs."""
    return list(node.temporary.glob("rrmove-*/asked"))


async def test_two_mirrors_at_once(source: Path, embedded: EmbeddedNode) -> None:
    with Web({"/a.bin": Page(DATA, rate=4 * MB)}) as one, Web({"/b.bin": Page(DATA, rate=4 * MB)}) as two:
        seen: list[Event] = []
        urls = [one.url("/a.bin"), two.url("/b.bin")]
        outcome = await move(source, embedded, mirrors=urls, on_event=seen.append)
        assert arrived(embedded)
        assert [attempt.transport for attempt in outcome.attempts] == ["aria2"]
        assert outcome.bytes_sent == 0
        assert min(one.sent, two.sent) > 3 * MB
        assert len({event.durable for event in seen if isinstance(event, Progressed)}) > 3
    await until(lambda: not daemons(embedded) and not aside(embedded))


async def test_it_fetches_from_us_where_no_mirror_is_named(source: Path, embedded: EmbeddedNode) -> None:
    outcome = await move(source, embedded)
    assert arrived(embedded)
    assert outcome.bytes_sent >= len(DATA)
    await until(lambda: not daemons(embedded) and not aside(embedded))


async def test_killed_on_its_way_chunked_goes_on_with_what_it_had(
    source: Path, embedded: EmbeddedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Chunked, "capabilities", replace(Chunked.capabilities, setup=1e6))  # the second choice
    with Web({"/a": Page(DATA, rate=2 * MB)}) as one, Web({"/b": Page(DATA, rate=2 * MB)}) as two:
        seen: list[Event] = []
        urls = [one.url("/a"), two.url("/b")]
        task = asyncio.create_task(move(source, embedded, "aria2", "chunked", mirrors=urls, on_event=seen.append))
        await until(lambda: any(isinstance(event, Progressed) and event.durable > 12 * MB for event in seen), 20)
        (pid,) = daemons(embedded)
        os.kill(pid, signal.SIGKILL)
        outcome = await task
    first, second = outcome.attempts
    assert (first.transport, first.failure, second.transport) == ("aria2", "unusable", "chunked")
    assert "aria2c ended with status -9" in str(first.error)
    assert first.gained >= 2 * GRAIN
    assert second.bytes_sent <= len(DATA) - first.gained
    assert arrived(embedded)


async def test_it_goes_on_where_others_stopped(source: Path, embedded: EmbeddedNode) -> None:
    """Also where holes are in the middle: the control file says which pieces are there."""
    seen: list[Event] = []
    task = asyncio.create_task(move(source, embedded, "chunked", limit_rate=16 * MB, on_event=seen.append))
    await until(lambda: any(isinstance(event, Progressed) and event.durable > 12 * MB for event in seen))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (part,) = embedded.home.glob(".*part")
    with part.open("r+b") as file:
        file.write(b"altered")
        file.seek(3 * GRAIN)
        file.write(b"altered")
    with Web({"/a": Page(DATA)}) as web:
        outcome = await move(source, embedded, mirrors=[web.url("/a")])
        assert outcome.bytes_reused >= GRAIN
        assert web.sent < len(DATA) - outcome.bytes_reused + 8 * MB  # its connections run on a little
    assert arrived(embedded)


async def test_a_url_and_a_wrong_mirror(embedded: EmbeddedNode) -> None:
    wrong = DATA[:GRAIN] + bytes(len(DATA) - GRAIN)
    with Web({"/model.pth": Page(DATA)}) as web, Web({"/b": Page(wrong)}) as other:
        outcome = await move(web.url("/model.pth"), embedded, sha256=SHA256)
        assert outcome.verified == ("received", "length", "sha256")
        assert arrived(embedded)
        (embedded.home / "model.pth").unlink()
        with pytest.raises(IntegrityError, match="another SHA-256"):
            await move(web.url("/model.pth"), embedded, sha256=SHA256, mirrors=[other.url("/b")])
        assert other.sent
        assert "model.pth" not in [path.name for path in embedded.home.iterdir()]


async def test_a_mirror_that_has_another_file_is_found_out(source: Path, embedded: EmbeddedNode) -> None:
    with Web({"/b": Page(DATA[: 8 * MB] + bytes(16 * MB))}) as web:
        outcome = await move(source, embedded, "aria2", "chunked", mirrors=[web.url("/b")])
    assert outcome.ok
    assert arrived(embedded)


async def test_a_file_that_changes_on_the_server_is_not_mixed(embedded: EmbeddedNode) -> None:
    page = Page(DATA, rate=8 * MB, next=Page(DATA[::-1], etag='"two"'), after=5)
    with Web({"/model.pth": page}) as web:
        with pytest.raises(Fatal, match="was changed on the server"):
            await move(web.url("/model.pth"), embedded)
        assert page.seen > 5
    assert "model.pth" not in [path.name for path in embedded.home.iterdir()]


@pytest.mark.parametrize(
    ("how", "words"),
    [({"status": 404}, "code 3, the server has no such file"), (None, "code 1, ")],
)
async def test_its_errors_in_our_words(
    source: Path, embedded: EmbeddedNode, how: dict[str, Any] | None, words: str
) -> None:
    with Web({"/a": Page(DATA, **how or {})}) as web:
        url = web.url("/a") if how else "http://127.0.0.1:9/a"
        with pytest.raises(TransportError, match=words) as raised:
            await move(source, embedded, mirrors=[url])
        assert "embedded" in str(raised.value)
        assert "/a" in str(raised.value)
    await until(lambda: not daemons(embedded) and not aside(embedded))


async def test_no_secret_is_seen_and_no_port_is_open_to_others(embedded: EmbeddedNode) -> None:
    with Web({"/model.pth": Page(DATA, rate=3 * MB, login="me:s3cret")}) as web:
        url = web.url("/model.pth", login="me:s3cret")
        task = asyncio.create_task(move(url, embedded))
        await until(lambda: bool(daemons(embedded)) and bool(web.sent))
        (pid,) = daemons(embedded)
        folder = Path(f"/proc/{pid}/cwd").readlink()
        conf = folder / "conf"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert conf.stat().st_mode & 0o777 == 0o600
        settings = dict(line.split("=", 1) for line in conf.read_text().splitlines())
        secret, port = settings["rpc-secret"], int(settings["rpc-listen-port"])
        assert len(secret) == 32
        assert not processes_with(secret)
        assert not processes_with("s3cret")
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"s3cret" not in environment
        assert secret.encode() not in environment

        def listening() -> set[str]:
            return {
                line.split()[1].split(":")[0]
                for table in ("tcp", "tcp6")
                for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
                if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port
            }

        await until(lambda: bool(listening()))
        assert listening() <= {"0100007F", "00000000000000000000000001000000"}
        assert (await task).ok
    assert arrived(embedded)


async def test_cancelled_it_leaves_nothing_running(source: Path, embedded: EmbeddedNode) -> None:
    with Web({"/a": Page(DATA, rate=MB)}) as web:
        task = asyncio.create_task(move(source, embedded, mirrors=[web.url("/a")]))
        await until(lambda: bool(daemons(embedded)) and bool(web.sent))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not daemons(embedded)
        await until(lambda: not aside(embedded))
    assert {path.name.rpartition(".")[2] for path in embedded.home.iterdir()} <= {"rrmove-part", "rrmove-journal"}


async def test_when_we_are_killed_no_aria2c_is_left(source: Path, embedded: EmbeddedNode, tmp_path: Path) -> None:
    with Web({"/a": Page(DATA, rate=MB // 2)}) as web:
        argv = [sys.executable, "-m", "rrmove", "auto", "--json", "--only", "aria2", "--mirror", web.url("/a")]
        argv += ["-F", str(embedded.ssh_config), str(source), "embedded"]
        ours = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=tmp_path)
        await until(lambda: bool(daemons(embedded)) and bool(web.sent))
        (pid,) = daemons(embedded)
        ours.send_signal(signal.SIGKILL)
        ours.wait()
        assert alive(pid)  # it was not for the connection that it ended
        await until(lambda: not alive(pid), 5.0)
        await until(lambda: not aside(embedded))
        assert ours.stdout is not None
        assert json.loads(ours.stdout.readline())
        ours.stdout.close()


def test_why_it_refuses(source: Path) -> None:
    from rrmove.model import Options, Remote, Request, Source
    from rrmove.probe import Facts
    from rrmove_plugins.aria2 import Aria2

    local = Request(source=Source.of(source), node=Node(name="n"))
    assert Aria2().refuse(local, Facts()) is None
    assert Aria2().refuse(local, Facts({"tools": "have curl\nlisted"})) == "the node has no aria2c"
    assert Aria2().refuse(local, Facts({"tools": "have aria2c\nlisted"})) == "the node has no python3"
    url = Remote.at("https://host/x")

    def why(remote: Remote, **options: Any) -> str:
        request = Request(source=remote, node=Node(name="n"), options=Options(**options))
        return Aria2().refuse(request, Facts()) or ""

    good = replace(url, sized=True, named=True, ranges=True, etag='"1"')
    assert why(good) == ""
    assert "two versions" in why(url)
    assert "cannot fetch" in why(replace(good, beyond="no route"))
    assert "give --sha256" in why(good, mirrors=("http://m/x",))
    assert why(good, mirrors=("http://m/x",), sha256="0" * 64) == ""
    assert issubclass(Unusable, TransportError)


@pytest.mark.parametrize(
    ("size", "missing", "there"),
    [
        (5, [(0, 5)], []),
        (5, [], [(0, 5)]),
        (35, [(10, 20)], [(0, 10), (20, 35)]),
        (100, [(90, 100), (0, 10)], [(10, 90)]),
    ],
)
def test_control_files(size: int, missing: list[tuple[int, int]], there: list[tuple[int, int]]) -> None:
    made = control_file(size, 10, [Range(*item) for item in missing])
    assert ranges_there(made) == tuple(Range(*item) for item in there)
    assert ranges_there(made[:20]) == ()
    assert ranges_there(b"\0\2" + made[2:]) == ()
