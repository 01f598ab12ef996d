"""torrent with real aria2c and libtorrent on the nodes: one swarm, resume, wrong bytes, and what is left of it."""

from __future__ import annotations

import asyncio
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
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rrmove
from rrmove.dht import bdecode
from rrmove.errors import Fatal, TransportError, Unusable
from rrmove.events import Event, Progressed
from rrmove.manifest import build
from rrmove.model import Node, Options, Outcome, Ports, Request, Settings, Source, SSHSettings
from rrmove.probe import Facts
from rrmove.testing import EmbeddedNode
from rrmove_plugins.chunked import Chunked
from rrmove_plugins.torrent import Torrent, swarm
from rrmove_plugins.torrent.metainfo import hashed, metainfo
from rrmove_plugins.torrent.seeder import Seeder, pack_for
from rrmove_plugins.torrent.settings import TorrentSettings
from tests.plugins.moves import holds, until
from tests.plugins.swarm import node_has_libtorrent
from tests.ssh.local import alive, processes_with

if TYPE_CHECKING:
    from collections.abc import Iterator

lt: Any = pytest.importorskip("libtorrent")
pytestmark = [
    pytest.mark.skipif(shutil.which("aria2c") is None, reason="no aria2c here"),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here"),
]

MB = 1_000_000
GRAIN = 2 << 20
DATA = os.urandom(24 * MB)
ARIA2C = {"torrent.client": "aria2c"}
LIBTORRENT = {"torrent.client": "libtorrent"}
BOTH = pytest.mark.parametrize(
    "client",
    [
        ARIA2C,
        pytest.param(
            LIBTORRENT, marks=pytest.mark.skipif(not node_has_libtorrent(), reason="no python3-libtorrent here")
        ),
    ],
    ids=["aria2c", "libtorrent"],
)


@pytest.fixture(autouse=True)
def own_experience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test know what another one found out about a node of that name."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.pth"
    path.write_bytes(DATA)
    return path


@pytest.fixture(scope="module")
def opened() -> Iterator[list[EmbeddedNode]]:
    with ExitStack() as stack:
        yield [stack.enter_context(EmbeddedNode(name=f"node{number}")) for number in range(3)]


@pytest.fixture
def nodes(opened: list[EmbeddedNode]) -> list[EmbeddedNode]:
    """Three nodes, empty."""
    for node in opened:
        for path in node.home.iterdir():
            path.unlink()
    return opened


def node_of(embedded: EmbeddedNode, **more: Any) -> Node:
    return Node(name=embedded.name, ssh=SSHSettings(host=embedded.name, config=embedded.ssh_config), **more)


async def move(source: Path, embedded: EmbeddedNode, *ways: str, **wishes: Any) -> Outcome:
    return await rrmove.move(source, node_of(embedded), only=ways or ("torrent",), **wishes)


def arrived(embedded: EmbeddedNode) -> bool:
    return holds(embedded, DATA)


def clients(nodes: list[EmbeddedNode]) -> list[int]:
    """List what runs on the nodes besides lanes: aria2c, and leased programs."""
    return [pid for node in nodes for pid, words in node.processes().items() if "aria2c" in words or "-I -c" in words]


def ours(nodes: list[EmbeddedNode]) -> list[Path]:
    """The directories of our seeders, and of leased programs."""
    folders = (Path(tempfile.gettempdir()), *(node.temporary for node in nodes))
    return [path for folder in folders for path in folder.glob("rrmove-*")]


def durable(seen: list[Event], least: int) -> bool:
    return any(isinstance(event, Progressed) and event.durable > least for event in seen)


@BOTH
async def test_one_node(source: Path, nodes: list[EmbeddedNode], client: dict[str, object]) -> None:
    seen: list[Event] = []
    outcome = await move(source, nodes[0], settings=client, on_event=seen.append)
    assert arrived(nodes[0])
    assert [attempt.transport for attempt in outcome.attempts] == ["torrent"]
    assert len(DATA) <= outcome.bytes_sent < 1.1 * len(DATA)
    assert nodes[0].bytes_in < 2 * MB  # it did not go over the login
    assert durable(seen, len(DATA) - 1)
    assert not swarm._swarms
    await until(lambda: not clients(nodes) and not ours(nodes))


@pytest.mark.skipif(not node_has_libtorrent(), reason="no python3-libtorrent here")
async def test_three_nodes_share_one_swarm(
    source: Path, nodes: list[EmbeddedNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Seeder] = []
    uploaded: list[int] = []

    class Watched(Seeder):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words)
            made.append(self)

        def close(self) -> None:
            uploaded.append(self.uploaded())
            super().close()

    monkeypatch.setattr(swarm, "Seeder", Watched)
    targets = [node_of(node) for node in nodes]
    outcomes = [
        outcome
        async for outcome in rrmove.distribute(
            source, targets, only=("torrent",), settings=LIBTORRENT, limit_rate=24 * MB
        )
    ]
    assert all(outcome.ok for outcome in outcomes)
    assert all(arrived(node) for node in nodes)
    assert len(made) == 1
    assert len(DATA) <= uploaded[0] < 2.5 * len(DATA)
    told = sum(outcome.bytes_sent for outcome in outcomes)
    assert abs(told - uploaded[0]) < 2 * MB
    assert min(outcome.bytes_sent for outcome in outcomes) > 0
    await until(lambda: not clients(nodes) and not ours(nodes))


@BOTH
async def test_it_fills_the_holes_that_others_left(
    source: Path, nodes: list[EmbeddedNode], client: dict[str, object]
) -> None:
    seen: list[Event] = []
    task = asyncio.create_task(move(source, nodes[0], "chunked", limit_rate=16 * MB, on_event=seen.append))
    await until(lambda: durable(seen, 12 * MB))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (part,) = nodes[0].home.glob(".*part")
    with part.open("r+b") as file:
        file.write(b"altered")
        file.seek(3 * GRAIN)
        file.write(b"altered")
    outcome = await move(source, nodes[0], settings=client)
    assert outcome.bytes_reused >= GRAIN
    assert outcome.bytes_sent <= len(DATA) - outcome.bytes_reused + 64_000
    assert arrived(nodes[0])


async def test_killed_on_its_way_chunked_goes_on_with_what_it_had(
    source: Path, nodes: list[EmbeddedNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Chunked, "capabilities", replace(Chunked.capabilities, setup=1e6))  # the second choice
    seen: list[Event] = []
    task = asyncio.create_task(
        move(source, nodes[0], "torrent", "chunked", settings=ARIA2C, limit_rate=12 * MB, on_event=seen.append)
    )
    await until(lambda: durable(seen, 12 * MB), 20)
    (pid,) = [pid for pid, words in nodes[0].processes().items() if "--conf-path" in words]
    os.kill(pid, signal.SIGKILL)
    outcome = await task
    first, second = outcome.attempts
    assert (first.transport, first.failure, second.transport) == ("torrent", "unusable", "chunked")
    assert "aria2c ended with status -9" in str(first.error)
    assert first.gained >= 2 * GRAIN
    assert second.bytes_sent <= len(DATA) - first.gained
    assert arrived(nodes[0])


async def test_no_secret_is_seen_and_nobody_else_gets_in(source: Path, nodes: list[EmbeddedNode]) -> None:
    task = asyncio.create_task(move(source, nodes[0], settings=ARIA2C, limit_rate=12 * MB))
    running = nodes[0].processes
    await until(lambda: any("--conf-path" in words for words in running().values()))
    (pid,) = [pid for pid, words in running().items() if "--conf-path" in words]
    folder = Path(f"/proc/{pid}/cwd").readlink()
    assert folder.stat().st_mode & 0o777 == 0o700
    conf = dict(line.split("=", 1) for line in (folder / "conf").read_text().splitlines())
    assert (folder / "conf").stat().st_mode & 0o777 == 0o600
    tracker = conf["bt-tracker"]
    secrets = [conf["rpc-secret"], tracker.rpartition("/")[2], conf["peer-id-prefix"]]
    assert not any(processes_with(word) for word in secrets)
    assert (conf["bt-force-encryption"], conf["enable-dht"], conf["bt-enable-lpd"]) == ("true", "false", "false")
    torrent: Any = bdecode((folder / "torrent").read_bytes())
    assert torrent.keys() == {b"info"}  # no tracker that could be found
    assert torrent[b"info"][b"private"] == 1
    # The tracker answers on the loopback only, at its path, for its own torrent
    port = int(tracker.split(":")[2].split("/")[0])
    table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    listening = {
        line.split()[1].split(":")[0]
        for line in table
        if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port
    }
    assert listening == {"0100007F"}
    for path in ("/announce", "/" + tracker.rpartition("/")[2] + "?info_hash=" + 20 * "x"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert stranger.recv(1000).startswith(b"HTTP/1.1 404")
    assert (await task).ok
    assert arrived(nodes[0])


@BOTH
async def test_cancelled_it_leaves_nothing(source: Path, nodes: list[EmbeddedNode], client: dict[str, object]) -> None:
    seen: list[Event] = []
    task = asyncio.create_task(move(source, nodes[0], settings=client, limit_rate=8 * MB, on_event=seen.append))
    await until(lambda: bool(clients(nodes)) and durable(seen, MB))
    assert swarm._swarms
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not swarm._swarms
    await until(lambda: not clients(nodes) and not ours(nodes), 2.0)


async def test_when_we_are_killed_no_client_is_left(source: Path, nodes: list[EmbeddedNode], tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "rrmove", "auto", "--json", "--only", "torrent", "-o", "torrent.client=aria2c"]
    argv += ["--limit-rate", "1M", "-F", str(nodes[0].ssh_config), str(source), nodes[0].name]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)})
    await until(lambda: any("--conf-path" in words for words in nodes[0].processes().values()))
    (pid,) = [pid for pid, words in nodes[0].processes().items() if "--conf-path" in words]
    (part,) = nodes[0].home.glob(".*part")
    await until(lambda: part.stat().st_blocks * 512 > MB)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert alive(pid)  # it was not for the connection that it ended
    await until(lambda: not alive(pid), 5.0)
    await until(lambda: not clients(nodes))
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())
    process.stdout.close()


@pytest.fixture
def seeder(source: Path) -> Iterator[tuple[Seeder, bytes]]:
    made = metainfo(len(DATA), 1 << 18, hashed(source, len(DATA), 1 << 18, threading.Event()), private=True)
    seeder = Seeder(source, made, TorrentSettings())
    try:
        yield seeder, made.torrent
    finally:
        seeder.close()


def client_of(torrent: bytes, folder: Path, **pack: object) -> tuple[Any, Any]:
    session = lt.session({**pack_for(0, TorrentSettings(), "-plain-"), "listen_interfaces": "127.0.0.1:0", **pack})
    wanted = lt.add_torrent_params()
    wanted.ti = lt.torrent_info(lt.bdecode(torrent))
    wanted.save_path = str(folder)
    return session, session.add_torrent(wanted)


async def test_a_plain_libtorrent_client_against_our_seeder(seeder: tuple[Seeder, bytes], tmp_path: Path) -> None:
    _session, torrent = client_of(seeder[1], tmp_path)
    torrent.connect_peer(("127.0.0.1", seeder[0].port))
    await until(lambda: torrent.status().is_seeding)
    torrent.flush_cache()
    await until(lambda: (tmp_path / "file").read_bytes() == DATA)
    assert all(peer.flags & peer.rc4_encrypted for peer in torrent.get_peer_info())
    assert seeder[0].uploaded() >= len(DATA)


async def test_who_does_not_encrypt_is_turned_away(seeder: tuple[Seeder, bytes], tmp_path: Path) -> None:
    _session, torrent = client_of(seeder[1], tmp_path, in_enc_policy=2, out_enc_policy=2)  # never
    torrent.connect_peer(("127.0.0.1", seeder[0].port))
    await asyncio.sleep(0.7)
    assert torrent.status().total_payload_download == 0


async def test_a_peer_that_sends_wrong_bytes_does_no_harm(
    source: Path, nodes: list[EmbeddedNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seeder of the same torrent whose file is another one joins; what it gives is hashed, and not taken."""
    (tmp_path / "file").write_bytes(DATA[: 8 * MB] + bytes(len(DATA) - 8 * MB))
    liar: list[Any] = []

    class Overheard(Seeder):
        def __init__(self, path: Path, made: Any, settings: TorrentSettings) -> None:
            super().__init__(path, made, settings)
            session = lt.session({**pack_for(0, settings, "-liar-"), "listen_interfaces": "127.0.0.1:0"})
            wanted = lt.add_torrent_params()
            wanted.ti = lt.torrent_info(lt.bdecode(made.torrent))
            wanted.save_path = str(tmp_path)
            # It says that it has everything and never looks; pieces that it finds wrong it would not send.
            wanted.flags = lt.torrent_flags.seed_mode | lt.torrent_flags.no_verify_files
            liar.extend((session, session.add_torrent(wanted)))

    asked = swarm.Swarm.peers_of
    monkeypatch.setattr(swarm, "Seeder", Overheard)
    monkeypatch.setattr(
        swarm.Swarm,
        "peers_of",
        lambda self, member: [*asked(self, member), ("127.0.0.1", liar[0].listen_port())],
    )
    outcome = await move(source, nodes[0], settings=ARIA2C, limit_rate=12 * MB)
    assert outcome.ok
    assert arrived(nodes[0])
    assert liar[1].status().total_payload_upload > 0
    liar.clear()


async def test_blocked_both_ways_it_gives_up_soon(
    source: Path, nodes: list[EmbeddedNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no probe has seen it: neither peer is told of the other, as if packets were dropped."""
    monkeypatch.setattr(swarm.Swarm, "peers_of", lambda *_: [])
    monkeypatch.setattr(Seeder, "connect", lambda *_: None)
    monkeypatch.setattr("rrmove_plugins.torrent.leech.MEETING", 1.0)
    with pytest.raises(TransportError, match=r"neither does the node reach us.*Open port 6881") as raised:
        await move(source, nodes[0], settings=ARIA2C)
    assert nodes[0].name in str(raised.value)
    await until(lambda: not clients(nodes) and not ours(nodes))


@BOTH
async def test_we_come_to_nodes_that_do_not_reach_us(
    source: Path, nodes: list[EmbeddedNode], monkeypatch: pytest.MonkeyPatch, client: dict[str, object]
) -> None:
    """Also where the torrent port is taken and nothing speaks DHT there."""
    monkeypatch.setattr(swarm.Swarm, "peers_of", lambda *_: [])
    monkeypatch.setattr("rrmove_plugins.torrent.leech.KNOCK", 0.2)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = node_of(nodes[0], ports=Ports(torrent=port))
        outcome = await rrmove.move(source, node, only=("torrent",), settings=client)
    assert outcome.ok
    assert arrived(nodes[0])


FULL = {"tools": "have python3\nhave aria2c\nlisted", "libtorrent": "libtorrent no"}


@pytest.mark.parametrize(
    ("answers", "client", "why"),
    [
        ({}, "auto", None),
        (FULL, "auto", None),
        ({"tools": "have python3\nlisted", "libtorrent": "libtorrent yes"}, "auto", None),
        ({"tools": "have python3\nlisted"}, "auto", "neither aria2c nor"),
        ({"tools": "have python3\nlisted", "libtorrent": "libtorrent no"}, "auto", "neither aria2c nor"),
        ({"tools": "have aria2c\nlisted"}, "auto", "no python3"),
        (FULL, "libtorrent", "has no libtorrent"),
        ({"tools": FULL["tools"]}, "libtorrent", None),
        ({"tools": "have python3\nlisted", "libtorrent": "libtorrent yes"}, "aria2c", "neither aria2c nor"),
    ],
)
def test_why_it_refuses(source: Path, answers: dict[str, str], client: Any, why: str | None) -> None:
    request = Request(
        source=Source.of(source), node=Node(name="n"), settings=Settings((TorrentSettings(client=client),))
    )
    said = Torrent().refuse(request, Facts(answers))
    assert (said is None) == (why is None)
    assert why is None or why in str(said)


def test_it_refuses_without_libtorrent_here(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrmove_plugins.torrent.find_spec", lambda _: None)
    request = Request(source=Source.of(source), node=Node(name="n"), options=Options())
    assert "pip install libtorrent" in str(Torrent().refuse(request, Facts()))
    monkeypatch.setitem(sys.modules, "libtorrent", None)
    with pytest.raises(Unusable, match="cannot be loaded here"):
        Seeder(source, metainfo(1, 1, bytes(20), private=True), TorrentSettings())


def test_torrents(source: Path) -> None:
    size = len(DATA)
    digests = hashed(source, size, GRAIN, threading.Event())
    assert digests[:20] == hashlib.sha1(DATA[:GRAIN]).digest()
    assert digests[-20:] == hashlib.sha1(DATA[size // GRAIN * GRAIN :]).digest()
    one, two = (metainfo(size, GRAIN, digests, private=True) for _ in range(2))
    assert one.info_hash != two.info_hash  # a secret of each swarm
    known = lt.torrent_info(lt.bdecode(one.torrent))
    assert known.info_hash().to_bytes() == one.info_hash
    assert (known.priv(), known.num_files(), known.piece_length()) == (True, 1, GRAIN)
    assert not lt.torrent_info(lt.bdecode(metainfo(size, GRAIN, digests, private=False).torrent)).priv()
    with pytest.raises(Fatal, match="shorter"):
        hashed(source, size + 1, GRAIN, threading.Event())
    stop = threading.Event()
    stop.set()
    assert build(source, size).size == size
    hashed(source, size, GRAIN, stop)  # does not read


def test_settings() -> None:
    quiet, loud = pack_for(1, TorrentSettings(), "-x-"), pack_for(1, TorrentSettings(dht=True, lsd=True, upnp=True), "")
    for key in ("enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp"):
        assert (quiet[key], loud[key]) == (False, True)
    with pytest.raises(ValueError, match="65535"):
        TorrentSettings(port=70000)
