"""http against embedded nodes: both ways, through proxies that do harm, and what is left behind: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rrmove
from rrmove.events import Event, Progressed
from rrmove.landing import PartFile, locate
from rrmove.manifest import Range, build, merged
from rrmove.model import Address, Attempt, Node, Outcome, Ports, Request, Source, SSHSettings
from rrmove.oneshot.server import Unsealed
from rrmove.probe import Facts
from rrmove.testing import EmbeddedNode, Faults
from rrmove_plugins.http import Http, direct, line, reverse
from rrmove_plugins.http.places import GREETING, Place, Shut, greeted, places_of
from rrmove_plugins.http.trust import plain_allowed
from tests.plugins.proxy import Proxy
from tests.ssh.local import LocalSession, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here")

MIB = 1 << 20
SIZE = 24 * MIB + 12345
GRAIN = 2 * MIB
PLAIN, TLS = "off", "on"
SWITCH = "RRMOVE_HTTP_TLS"


@pytest.fixture(autouse=True)
def own_experience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test know what another one found out about a node of that name."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv(SWITCH, TLS)


@pytest.fixture
def embedded() -> Iterator[EmbeddedNode]:
    with EmbeddedNode() as opened:
        yield opened


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def node_of(embedded: EmbeddedNode, port: int) -> Node:
    return Node(name="embedded", ssh=SSHSettings(host="embedded", config=embedded.ssh_config), ports=Ports(data=port))


async def move(
    path: Path,
    embedded: EmbeddedNode,
    port: int,
    *only: str,
    rate: float | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Outcome:
    return await rrmove.move(path, node_of(embedded, port), only=only or ("http",), limit_rate=rate, on_event=on_event)


def through(proxy: Proxy, port: int, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """Have a proxy stand in the way to the data port."""
    proxy.port = port

    async def places(_job: object) -> list[Place]:
        return [Place("node", socket.AF_INET, proxy.place, seen=True)]

    async def knocked(_place: object, _seconds: float) -> str:
        return "refused"  # behind the proxy nothing listens yet

    monkeypatch.setattr(direct, "places_of", places)
    monkeypatch.setattr(direct, "knock", knocked)
    return proxy


def way(attempt: Attempt) -> tuple[str, str | None]:
    return attempt.transport, attempt.failure


def strangers(home: Path) -> set[int]:
    """Receivers and pullers at work on files below a directory."""
    found = set[int]()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
            if any(word in words for word in (b"'__name__':'oneshot'", b"'__name__':'pull'", b"dd\0of=")):
                held = (fd.readlink() for fd in (process / "fd").iterdir())
                found |= {int(process.name) for path in held if path.is_relative_to(home)}
    return found


def gone(home: Path, seconds: float = 2.0) -> bool:
    return until(lambda: not strangers(home), seconds)


def nothing_left(embedded: EmbeddedNode, source: Path) -> None:
    assert (embedded.home / source.name).read_bytes() == source.read_bytes()
    assert [path.name for path in embedded.home.iterdir() if "rrmove" in path.name] == []
    assert gone(embedded.home)


@pytest.mark.parametrize("tls", [TLS, PLAIN])
async def test_a_file_goes_to_a_port_on_which_nothing_listens(
    tls: str, embedded: EmbeddedNode, source: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, tls)
    with through(Proxy(), port, monkeypatch) as proxy:
        outcome = await move(source, embedded, port)
    assert outcome.ok
    assert [way(attempt) for attempt in outcome.attempts] == [("http", None)]
    assert SIZE <= outcome.bytes_sent < SIZE + GRAIN
    assert proxy.passed > SIZE  # it did go through the data port
    nothing_left(embedded, source)


@pytest.mark.parametrize("tls", [TLS, PLAIN])
async def test_the_node_pulls_where_its_port_is_taken(
    tls: str, embedded: EmbeddedNode, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, tls)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = await move(source, embedded, taken.getsockname()[1])
    assert [way(attempt) for attempt in outcome.attempts] == [("http", None)]
    assert SIZE <= outcome.bytes_sent < SIZE + GRAIN
    nothing_left(embedded, source)


async def test_a_pull_keeps_the_rate_limit_and_its_cancellation_leaves_no_puller(
    embedded: EmbeddedNode, source: Path
) -> None:
    reached, begun = asyncio.Event(), time.monotonic()

    def look(event: Event) -> None:
        if isinstance(event, Progressed) and event.durable >= 8 * MIB:
            reached.set()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        moving = asyncio.create_task(move(source, embedded, taken.getsockname()[1], rate=10e6, on_event=look))
        await asyncio.wait({asyncio.create_task(reached.wait()), moving}, timeout=30, return_when="FIRST_COMPLETED")
        assert reached.is_set()
        assert not moving.done()
        assert time.monotonic() - begun > 0.7 * 8 * MIB / 10e6
        assert strangers(embedded.home)
        moving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await moving
    assert gone(embedded.home)
    assert not (embedded.home / source.name).exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize("tls", [TLS, PLAIN])
async def test_without_python_curl_pulls(tls: str, source: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, tls)
    seen = list[str]()
    with EmbeddedNode(Faults(hidden_tools=frozenset({"python3"}))) as bare:
        watching = asyncio.create_task(watch_arguments(seen))
        outcome = await move(source, bare, port)
        watching.cancel()
        assert [way(attempt) for attempt in outcome.attempts] == [("http", None)]
        nothing_left(bare, source)
    assert any("curl" in line for line in seen)
    assert not any("Bearer" in line for line in seen)


async def watch_arguments(seen: list[str]) -> None:
    """Look at what everybody sees of the processes."""
    while True:
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                seen.append(each.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        await asyncio.sleep(0.02)


async def test_the_rate_limit_holds_and_an_interrupted_move_goes_on(
    embedded: EmbeddedNode, source: Path, port: int
) -> None:
    reached = asyncio.Event()

    def look(event: Event) -> None:
        if isinstance(event, Progressed) and event.durable >= 6 * MIB:
            reached.set()

    begun = time.monotonic()
    moving = asyncio.create_task(move(source, embedded, port, rate=10e6, on_event=look))
    await asyncio.wait({asyncio.create_task(reached.wait()), moving}, timeout=30, return_when="FIRST_COMPLETED")
    assert reached.is_set()
    assert not moving.done()
    assert time.monotonic() - begun > 0.8 * (6 * MIB - MIB) / 10e6
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert not (embedded.home / source.name).exists()
    assert gone(embedded.home)
    outcome = await move(source, embedded, port)
    assert outcome.bytes_reused >= 2 * GRAIN
    assert outcome.bytes_sent <= SIZE - outcome.bytes_reused + GRAIN
    nothing_left(embedded, source)


async def test_chunks_that_were_altered_are_sent_again_and_no_others(
    embedded: EmbeddedNode, source: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, PLAIN)
    with through(Proxy(flip_every=5 * MIB, flips=3), port, monkeypatch) as proxy:
        outcome = await move(source, embedded, port)
    assert proxy.flipped == 3
    assert [way(attempt) for attempt in outcome.attempts] == [("http", None)]
    assert SIZE < outcome.bytes_sent <= SIZE + 3 * GRAIN
    nothing_left(embedded, source)


async def test_a_proxy_that_alters_everything_ends_as_an_integrity_error(
    embedded: EmbeddedNode, source: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, PLAIN)
    with through(Proxy(flip_every=128 << 10), port, monkeypatch) as proxy, pytest.raises(rrmove.IntegrityError) as seen:
        await move(source, embedded, port)
    assert proxy.flipped > 12
    assert seen.value.exit_code == 4
    assert not (embedded.home / source.name).exists()
    assert gone(embedded.home)


async def test_with_tls_such_a_proxy_is_refused(
    embedded: EmbeddedNode, source: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reverse, "send_reverse", no_way)
    harm = Proxy(flip_every=1, least=1000)  # but for the greeting, everything
    with through(harm, port, monkeypatch) as proxy, pytest.raises(rrmove.TransportError) as seen:
        await move(source, embedded, port)
    assert proxy.flipped
    assert seen.value.outcome is not None
    assert [way(attempt) for attempt in seen.value.outcome.attempts] == [("http", "unusable")]
    assert not (embedded.home / source.name).exists()
    await move(source, embedded, port, "chunked")
    nothing_left(embedded, source)


async def no_way(_job: object) -> None:
    raise rrmove.Unusable("the way back is shut for this test")


async def test_connections_that_are_cut_again_and_again_get_it_there(
    embedded: EmbeddedNode, source: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with through(Proxy(cut_after=5 * MIB), port, monkeypatch) as proxy:
        outcome = await move(source, embedded, port)
    assert proxy.cut >= 2
    assert [way(attempt) for attempt in outcome.attempts] == [("http", None)]
    nothing_left(embedded, source)


async def test_a_port_that_swallows_everything_is_left_for_ssh(
    embedded: EmbeddedNode, source: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "PATIENCE", 1.0)
    monkeypatch.setattr(reverse, "send_reverse", no_way)
    with through(Proxy(stall_after=4 * MIB), port, monkeypatch) as proxy:
        with pytest.raises(rrmove.TransportError) as seen:
            await move(source, embedded, port)
        assert proxy.stalled, str(seen.value)
    outcome = seen.value.outcome
    assert outcome is not None
    assert [way(attempt) for attempt in outcome.attempts[:1]] == [("http", "transient")]
    assert all(attempt.seconds < 10 for attempt in outcome.attempts)
    assert not (embedded.home / source.name).exists()
    again = await move(source, embedded, port, "chunked")
    assert again.bytes_reused > 0  # what had come through the port is not sent again
    nothing_left(embedded, source)


async def test_somebody_with_another_certificate_gets_nothing(
    embedded: EmbeddedNode, source: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reverse, "send_reverse", no_way)
    bait = tmp_path / "bait"
    bait.write_bytes(b"bait")
    taken = list[int]()
    async with rrmove.serve_once(bait, sent=taken.append) as stranger:
        with through(Proxy(), stranger.endpoint.port, monkeypatch) as proxy, pytest.raises(rrmove.RRMoveError) as seen:
            await move(source, embedded, port)
    assert "certificate" in str(seen.value)
    assert proxy.passed < 20_000  # handshakes
    assert not (embedded.home / source.name).exists()


class NoRange(BaseHTTPRequestHandler):
    """A server that knows neither ranges nor PUT into them."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(b"x" * 1_000_000)

    def do_PUT(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))  # else the answer may be lost in a reset
        self.send_response(501)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


async def test_a_server_without_ranges_is_no_way(
    embedded: EmbeddedNode, source: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, PLAIN)
    monkeypatch.setattr(reverse, "send_reverse", no_way)
    NoRange.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), NoRange) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with through(Proxy(), server.server_address[1], monkeypatch), pytest.raises(rrmove.TransportError) as seen:
            await move(source, embedded, port)
        server.shutdown()
    assert NoRange.asked
    assert "501" in str(seen.value.outcome.attempts[0].error if seen.value.outcome else "")
    assert not (embedded.home / source.name).exists()


async def test_a_puller_takes_no_answer_but_the_range_that_it_asked_for(tmp_path: Path) -> None:
    part = tmp_path / ".x.rrmove-part"
    part.write_bytes(bytes(1_000_000))
    NoRange.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), NoRange) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = {
            "file": str(part), "host": "127.0.0.1", "port": server.server_address[1], "path": "/x", "token": "t",
            "fingerprint": None, "size": 1_000_000, "streams": 2,
            "pieces": [(0, 500_000, ""), (500_000, 1_000_000, "")],
        }  # fmt: skip
        said = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-I", "-S", "-c", reverse.BOOT],
            input=reverse.pull_text() + json.dumps(told).encode(),
            capture_output=True,
            check=False,
        )
        assert said.stdout == b"pulling\n"
        assert gone(tmp_path, 5.0)
        server.shutdown()
    assert NoRange.asked
    assert part.read_bytes() == bytes(1_000_000)


def test_a_killed_rrmove_leaves_no_receiver(embedded: EmbeddedNode, source: Path, port: int, tmp_path: Path) -> None:
    nodes = tmp_path / "nodes.toml"
    nodes.write_text(f'[nodes.embedded]\nhost = "embedded"\ndata_port = {port}\n')
    argv = [str(Path(sys.executable).with_name("rrmove")), "auto", str(source), "embedded", "--only", "http"]
    argv += ["--limit-rate", "2M", "--nodes", str(nodes), "-F", str(embedded.ssh_config)]
    process = subprocess.Popen(argv, start_new_session=True, stderr=subprocess.DEVNULL)
    assert until(lambda: bool(strangers(embedded.home)), 20.0)
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(embedded.home, 12.0)  # seven seconds without anybody who has the token
    assert not (embedded.home / source.name).exists()


class TestTheReceiver:
    async def put(self, port: int, head: str, body: bytes = b"") -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        try:
            return await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
        finally:
            writer.close()

    async def test_it_writes_for_whoever_has_the_token_and_for_nobody_else(self, tmp_path: Path) -> None:
        part = tmp_path / ".x.rrmove-part"
        part.write_bytes(bytes(100))
        async with LocalSession(tmp_path) as session:
            end = await rrmove.serve_there(session, str(part), writable=True, tls=False, idle=1.0)
            right = f"Authorization: Bearer {end.token}"
            span = "Content-Range: bytes 10-13/100\nContent-Length: 4"
            digest = (
                f"Content-Digest: sha-256=:{__import__('base64').b64encode(hashlib.sha256(b'abcd').digest()).decode()}:"
            )
            assert b" 401 " in await self.put(end.port, f"PUT {end.path} HTTP/1.1\n{span}", b"evil")
            assert b" 401 " in await self.put(
                end.port, f"PUT {end.path} HTTP/1.1\nAuthorization: Bearer x\n{span}", b"evil"
            )
            assert b" 404 " in await self.put(end.port, f"PUT /else HTTP/1.1\n{right}\n{span}", b"evil")
            assert b" 405 " in await self.put(end.port, f"GET {end.path} HTTP/1.1\n{right}")
            assert b" 400 " in await self.put(end.port, f"PUT {end.path} HTTP/1.1\n{right}\nContent-Length: 4", b"evil")
            far = span.replace("10-13", "98-101")
            assert b" 400 " in await self.put(end.port, f"PUT {end.path} HTTP/1.1\n{right}\n{far}", b"evil")
            assert part.read_bytes() == bytes(100)
            assert b" 422 " in await self.put(end.port, f"PUT {end.path} HTTP/1.1\n{right}\n{span}\n{digest}", b"evil")
            assert b" 204 " in await self.put(end.port, f"PUT {end.path} HTTP/1.1\n{right}\n{span}\n{digest}", b"abcd")
            assert part.read_bytes() == bytes(10) + b"abcd" + bytes(86)
            assert b" 204 " in await self.put(end.port, f"DELETE {end.path} HTTP/1.1\n{right}")
            assert gone(tmp_path, 1.0)

    async def test_no_byte_is_written_again_once_it_was_acknowledged(self, tmp_path: Path) -> None:
        part = tmp_path / ".x.rrmove-part"
        part.write_bytes(bytes(100))
        async with LocalSession(tmp_path) as session:
            end = await rrmove.serve_there(session, str(part), writable=(Range(10, 30), Range(50, 60)), tls=False)

            def head(start: int, stop: int) -> str:
                said = f"PUT {end.path} HTTP/1.1\nAuthorization: Bearer {end.token}\n"
                return f"{said}Content-Range: bytes {start}-{stop - 1}/100\nContent-Length: {stop - start}"

            _, zombie = await asyncio.open_connection("127.0.0.1", end.port)
            zombie.write(head(10, 30).replace("\n", "\r\n").encode() + b"\r\n\r\n" + b"z" * 10)  # held up on its way
            await asyncio.sleep(0.1)
            assert b" 204 " in await self.put(end.port, head(10, 20), b"a" * 10)
            zombie.write(b"z" * 10)  # and now here
            assert await asyncio.to_thread(until, lambda: part.read_bytes()[20:30] == b"z" * 10)
            assert b" 204 " in await self.put(end.port, head(0, 100), b"b" * 100)  # what is not open is dropped
            assert b" 204 " in await self.put(end.port, head(0, 100), b"c" * 100)
            zombie.close()
            right = bytes(10) + b"a" * 10 + b"z" * 10 + bytes(20) + b"b" * 10 + bytes(40)
            assert part.read_bytes() in {right, right.replace(b"z", b"b")}
            await self.put(end.port, f"DELETE {end.path} HTTP/1.1\nAuthorization: Bearer {end.token}")
            assert gone(tmp_path, 1.0)

    async def test_two_of_them_are_never_at_one_part_file(self, tmp_path: Path) -> None:
        path = tmp_path / "model.bin"
        path.write_bytes(b"x" * 100)
        request = Request(source=Source.of(path), node=Node(name="here"), destination="other.bin")
        async with LocalSession(tmp_path) as session:
            made = build(path, 100)
            first = PartFile(session, request, made, await locate(session, request, made))
            await first.open()
            outdated = await first.claim()
            second = PartFile(session, request, made, await locate(session, request, made))
            await second.open()
            claimed = await second.claim()
            with pytest.raises(rrmove.Unusable, match="another one than was meant"):
                await rrmove.serve_there(session, first.part, writable=True, tls=False, identity=outdated)
            await rrmove.serve_there(session, second.part, writable=True, tls=False, identity=claimed)
            with pytest.raises(rrmove.Unusable, match="somebody else receives"):
                await rrmove.serve_there(session, second.part, writable=True, tls=False, identity=claimed)
            assert strangers(tmp_path)
            await second.claim()  # ends the one that there is
            assert gone(tmp_path, 0.0)

    async def test_it_goes_when_nobody_comes(self, tmp_path: Path) -> None:
        part = tmp_path / ".x.rrmove-part"
        part.write_bytes(bytes(100))
        async with LocalSession(tmp_path) as session:
            end = await rrmove.serve_there(session, str(part), writable=True, idle=0.5)
            assert strangers(tmp_path)
            with socket.create_connection(("127.0.0.1", end.port)):  # without the token it does not count
                assert gone(tmp_path, 3.0)

    async def test_a_link_a_missing_file_or_a_taken_port_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"secret")
        (tmp_path / "link").symlink_to(tmp_path / "secret")
        async with LocalSession(tmp_path) as session:
            for name in ("link", "missing"):
                with pytest.raises(rrmove.Unusable):
                    await rrmove.serve_there(session, str(tmp_path / name), writable=True)
            with socket.create_server(("", 0)) as taken, pytest.raises(rrmove.Unusable, match="in use"):
                await rrmove.serve_there(session, str(tmp_path / "secret"), port=taken.getsockname()[1])
        assert not strangers(tmp_path)


class TestServingOnce:
    @pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
    async def test_curl_fetches_ranges_of_it_by_token_and_pinned_key(self, source: Path) -> None:
        gone, kept = list[int](), list[tuple[int, int]]()
        async with rrmove.serve_once(
            source, host="127.0.0.1", sent=gone.append, kept=lambda *span: kept.append(span)
        ) as serving:
            end = serving.endpoint
            config = (
                f'url="{end.url("127.0.0.1")}"\ninsecure\npinnedpubkey="sha256//{end.public_key}"\nfail\n'
                f'range="1000-1999"\n'
            )
            for told, status in ((config, 22), (f'{config}header="Authorization: Bearer {end.token}"\n', 0)):
                done = await asyncio.to_thread(
                    subprocess.run, ["curl", "-sK", "-"], input=told.encode(), capture_output=True, check=False
                )
                assert done.returncode == status
            assert done.stdout == source.read_bytes()[1000:2000]
            await asyncio.sleep(0.1)
        assert sum(gone) == 1000
        assert kept == [(1000, 2000)]
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", end.port)).close()
        assert end.token not in repr(end)


# (what the node offers, what is said of it)
REFUSALS = [
    ({}, None),
    ({"tools": "have python3\nlisted", "reach": "filtered"}, None),
    ({"tools": "have curl\nlisted"}, None),
    ({"tools": "have curl\nlisted", "reach": "open"}, None),
    ({"tools": "have curl\nlisted", "reach": "filtered"}, "without python3"),
    ({"tools": "have rsync\nlisted"}, "neither python3 nor curl"),
]


@pytest.mark.parametrize(("answers", "reason"), REFUSALS)
def test_it_refuses_only_what_it_knows(answers: dict[str, str], reason: str | None, source: Path) -> None:
    said = Http().refuse(Request(source=Source.of(source), node=Node(name="n")), Facts(answers))
    assert said is None if reason is None else reason in str(said)


PLACES = [
    ("127.0.0.1", "", True), ("::1", "", True), ("::ffff:127.0.0.1", "", True), ("100.64.3.4", "", True),
    ("fd7a:115c:a1e0::1", "", True), ("100.128.0.1", "", False), ("192.168.0.1", "", False), ("203.0.113.9", "", False),
    ("fe80::1%eth0", "", False), ("203.0.113.9", "off", True), ("127.0.0.1", "on", False), ("nonsense", "", False),
]  # fmt: skip


@pytest.mark.parametrize(("address", "switch", "allowed"), PLACES)
def test_bytes_travel_in_the_clear_only_where_nobody_listens_or_where_it_is_asked_for(
    address: str,
    switch: str,
    allowed: bool,  # noqa: FBT001
) -> None:
    assert plain_allowed(address, switch or "auto") is allowed


STATE = {
    "port": 8780, "scheme": "https", "token_file": "/t", "fingerprint": "AB:cd",
    "roots": [
        {"name": "data", "path": "/data", "access": "rw"}, {"name": "deep", "path": "/data/deep", "access": "w"},
        {"name": "read", "path": "/read", "access": "r"},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ("/data/.a b.1.rrmove-part", "/v1/parts/data/.a%20b.1.rrmove-part"),
        ("/data/deep/x/.y.rrmove-part", "/v1/parts/deep/x/.y.rrmove-part"),
        ("/data/\udcff.rrmove-part", "/v1/parts/data/%FF.rrmove-part"),
        ("/database/.y.rrmove-part", None),
        ("/read/.y.rrmove-part", None),
    ],
)
def test_a_data_server_is_used_where_it_serves_the_directory(part: str, path: str | None) -> None:
    door = direct.door_of(
        json.dumps(STATE).encode() + b"\nsecret\n", part, "n", (socket.AF_INET, ("203.0.113.9", 8780))
    )
    assert (door and door.path) == path
    if door is not None:
        assert door.fingerprint == "abcd"
        assert door.headers == {"Authorization": "Bearer secret"}
        assert not door.once
        assert "secret" not in repr(door)


@pytest.mark.parametrize("said", [b"", b"{}\nx", b"not json\nx", json.dumps(STATE).encode() + b"\n", b"[]\nx"])
def test_half_a_state_is_no_data_server(said: bytes) -> None:
    place = (socket.AF_INET, ("203.0.113.9", 8780))
    assert direct.door_of(said, "/data/.x.rrmove-part", "n", place) is None


def test_a_token_is_not_sent_in_the_clear_to_a_data_server() -> None:
    said = json.dumps(STATE | {"scheme": "http", "fingerprint": None}).encode() + b"\nsecret"
    place = (socket.AF_INET, ("203.0.113.9", 8780))
    with pytest.raises(direct.Shut, match="plain HTTP"):
        direct.door_of(said, "/data/.x.rrmove-part", "n", place)
    assert direct.door_of(said, "/data/.x.rrmove-part", "n", place, PLAIN) is not None


def test_a_token_is_never_sent_in_the_clear_to_an_address_where_ssh_does_not_go() -> None:
    """Not over Tailscale, which encrypts, nor where the user allows plain HTTP: who is there?"""
    said = json.dumps(STATE | {"scheme": "http", "fingerprint": None}).encode() + b"\nsecret"
    place = (socket.AF_INET, ("100.64.0.7", 8780))
    assert direct.door_of(said, "/data/.x.rrmove-part", "n", place) is not None
    for tls in ("auto", PLAIN):
        with pytest.raises(direct.Shut, match=r"nobody knows that 100\.64\.0\.7 is the node"):
            direct.door_of(said, "/data/.x.rrmove-part", "n", place, tls, seen=False)


OURS, MESH, LAN = "203.0.113.9", "100.64.0.7", "10.0.0.7"
FURTHER = (Address(MESH, "tailscale"), Address(LAN, "lan"))
# (SSH's address, further ones, what a probe saw of the port: altogether and where, the places that are left)
PLACES_LEFT: list[tuple[str | None, tuple[Address, ...], str | None, str | None, list[tuple[str, bool]] | str]] = [
    (OURS, (), None, None, [(OURS, True)]),
    (OURS, (), "open", None, [(OURS, True)]),
    (OURS, (), "filtered", None, "port 8780 is filtered"),
    (OURS, FURTHER, None, None, [(OURS, True), (LAN, False), (MESH, False)]),
    (OURS, FURTHER, "open", f"open {OURS}, open {MESH}", [(OURS, True), (MESH, False)]),
    (OURS, FURTHER, "open", f"filtered {OURS}, unreachable {LAN}, open {MESH}", [(MESH, False)]),
    (OURS, FURTHER, "filtered", f"filtered {OURS}, unreachable {LAN}", f"filtered at {OURS}, unreachable at {LAN}"),
    (OURS, FURTHER, "open", None, [(OURS, True)]),  # at the others is another machine
    (MESH, FURTHER, "open", f"filtered {OURS}, open {MESH}", [(MESH, True)]),
    (None, (), None, None, "only one through a proxy or jump host"),
    (None, FURTHER, None, None, [(LAN, False), (MESH, False)]),
    (None, FURTHER, "open", f"filtered {LAN}, open {MESH}", [(MESH, False)]),
    (None, FURTHER[:1], "filtered", f"filtered {MESH}", f"port 8780 is filtered at {MESH}"),
    (None, (Address("no-such-host.invalid"),), None, None, r"unresolvable \(.+\) at no-such-host\.invalid"),
]


@pytest.mark.parametrize(("ours", "further", "state", "places", "expected"), PLACES_LEFT)
async def test_the_places_where_the_data_port_may_be(
    ours: str | None,
    further: tuple[Address, ...],
    state: str | None,
    places: str | None,
    expected: list[tuple[str, bool]] | str,
    source: Path,
) -> None:
    answers = {"ports": state and f"8780 {state}", "places": places and "8780 " + places.replace(", ", "\n8780 ")}

    async def address() -> tuple[str, int] | None:
        return (ours, 22) if ours else None

    job: Any = SimpleNamespace(
        request=Request(source=Source.of(source), node=Node(name="n", addresses=further)),
        facts=Facts({name: text for name, text in answers.items() if text}),
        session=SimpleNamespace(address=address),
    )
    if isinstance(expected, str):
        with pytest.raises(Shut, match=expected):
            await places_of(job)
    else:
        found = await places_of(job)
        assert [(place.host, place.seen) for place in found] == expected
        assert all(place.where[1] == 8780 for place in found)
        assert [place.host for place in found if place.plain("auto")] == [MESH] * (ours == MESH)
        assert [place.host for place in found if place.plain("off")] == [host for host, seen in expected if seen]


async def test_of_several_doors_the_one_with_the_right_certificate_is_taken(tmp_path: Path) -> None:
    bait = tmp_path / "bait"
    bait.write_bytes(b"bait")
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        async with rrmove.serve_once(bait) as right, rrmove.serve_once(bait) as stranger:
            ports = [silent.getsockname()[1], stranger.endpoint.port, closed.getsockname()[1], right.endpoint.port]
            closed.close()
            doors = [
                line.Door(
                    node="n", family=socket.AF_INET, place=("127.0.0.1", port), path="/", headers={}, once=True,
                    fingerprint=right.endpoint.fingerprint,
                )
                for port in ports
            ]  # fmt: skip
            begun = time.monotonic()
            assert await greeted(doors) == doors[3]
            assert await greeted(doors[3:]) == doors[3]
            assert time.monotonic() - begun < GREETING  # nobody waits for the silent one
            with pytest.raises(Shut, match=f"{doors[1].name} and {doors[2].name}"):
                await greeted(doors[1:3])
            assert not stranger.asked.is_set()


@pytest.mark.parametrize("tls", [PLAIN, TLS])
async def test_it_leads_for_big_files_only(
    tls: str, embedded: EmbeddedNode, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranking, from facts that the move itself gathers: sparse files, so that nothing has to be sent."""
    monkeypatch.setenv(SWITCH, tls)
    first = dict[int, str]()
    for size in (8 * MIB, 2048 * MIB):
        path = tmp_path / f"sparse{size}"
        with path.open("wb") as file:
            file.truncate(size)
        seen = await rrmove.preview(path, node_of(embedded, port))
        first[size] = seen.plan.steps[0].transport
    assert first == {8 * MIB: "chunked", 2048 * MIB: "http"}


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=4),
    st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 60)), max_size=12),
)
def test_what_was_sealed_or_never_open_keeps_its_bytes(
    spans: list[tuple[int, int]], deeds: list[tuple[bool, int, int]]
) -> None:
    opened = merged(Range(min(pair), max(pair)) for pair in spans)
    unsealed = Unsealed([(span.start, span.stop) for span in opened])
    free = {at for span in opened for at in range(span.start, span.stop)}
    expected = bytearray(60)
    with tempfile.TemporaryFile() as file:
        file.write(expected)
        file.flush()
        for number, (seals, *ends) in enumerate(deeds, 1):
            start, stop = min(ends), max(ends)
            if seals:
                unsealed.seal(start, stop)
                free -= set(range(start, stop))
            else:
                unsealed.write(file.fileno(), memoryview(bytes([number]) * (stop - start)), start)
                for at in free & set(range(start, stop)):
                    expected[at] = number
        assert os.pread(file.fileno(), 100, 0) == expected
