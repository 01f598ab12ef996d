"""gather(): one login, real snippets in a real shell, real ports; only the lane is in memory."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import time
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rrmove.errors import Fatal, Transient, TransportError, Unusable
from rrmove.events import Event, Probed
from rrmove.gather import EVERY_BYTE, gather
from rrmove.model import Node, Ports
from rrmove.probe import (
    CLEAN,
    CLIENT,
    DHT,
    PLACES,
    PORTS,
    REACH,
    RTT,
    SPACE,
    STANDARD,
    SYSTEM,
    TOOLS,
    Facts,
    Probe,
)
from rrmove.session import Body, Lane, Reply, Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

HERE = "127.0.0.1"
BLACK_HOLE = "192.0.2.1"  # TEST-NET-1 (RFC 5737): nobody is there


@dataclass
class MemoryLane:
    """A lane whose node is this very machine; `delay` is its round trip in seconds."""

    delay: float = 0.0
    sees: str = f"{HERE} 50022 {HERE} 22"
    fails: Mapping[str, TransportError] = field(default_factory=dict)
    mangle: Callable[[bytes], bytes] = bytes
    reach: Callable[..., Awaitable[str]] | None = None
    hangs: bool = False
    age: float = 0.0
    carried: int = 0
    quiet: float = 0.0
    alive: bool = True
    frame_limit: int = 1 << 20
    calls: list[str] = field(default_factory=list)

    async def ready(self) -> None: ...

    async def close(self) -> None: ...

    async def call(self, op: str, /, body: Body = b"", **arguments: object) -> Reply:
        self.calls.append(op)
        await asyncio.sleep(self.delay)
        if op in self.fails:
            raise self.fails[op]
        reply: Reply = await getattr(self, f"_{op}")(body, **arguments)
        return reply

    async def _hello(self, body: Body) -> Reply:
        assert isinstance(body, bytes)
        heard = self.mangle(body)
        return Reply({"python": "3.11.2", "clean": heard == EVERY_BYTE, "pid": 1}, self.mangle(heard))

    async def _probe(self, _body: Body, asks: dict[str, str]) -> Reply:
        if self.hangs:
            await asyncio.sleep(3600)
        outputs = await asyncio.gather(*(asyncio.to_thread(self._run, ask) for ask in asks.values()))
        return Reply({"outputs": dict(zip(asks, outputs, strict=True))})

    def _run(self, ask: str) -> str:
        done = subprocess.run(
            ["sh", "-c", ask],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "SSH_CONNECTION": self.sees},
            check=False,
        )
        return done.stdout.decode("utf-8", "surrogateescape")

    async def _reach(self, _body: Body, host: str, port: int, timeout: float) -> Reply:
        if self.reach is not None:
            return Reply({"state": await self.reach(host, port, timeout)})
        try:
            async with asyncio.timeout(timeout):
                _, writer = await asyncio.open_connection(host, port)
            writer.close()
        except TimeoutError:
            return Reply({"state": "filtered"})
        except OSError:
            return Reply({"state": "refused"})
        return Reply({"state": "open"})


@dataclass
class MemorySession:
    """A login that takes `login` seconds, or fails."""

    lane: MemoryLane = field(default_factory=MemoryLane)
    login: float = 0.0
    error: TransportError | None = None
    node: Node = field(default_factory=lambda: Node(name="n1"))

    async def control(self) -> Lane:
        await asyncio.sleep(self.login)
        if self.error is not None:
            raise self.error
        return self.lane

    async def open_lane(self, *, text: bool = False) -> Lane:
        raise AssertionError("one login is enough", text)

    def ssh_command(self) -> tuple[str, ...] | None:
        return None

    async def address(self) -> tuple[str, int] | None:
        return None

    @property
    def floor(self) -> bool:
        return False

    def ssh_destination(self) -> str:
        return self.node.name


def learn(session: Session, probes: Any = STANDARD, **given: Any) -> tuple[Facts, float]:
    """Gather, and check that neither a task nor a socket is left."""
    options: dict[str, Any] = {"address": None, "ports": (), "grace": None, **given}

    async def run() -> tuple[Facts, float]:
        begun = time.monotonic()
        facts = await gather(session, probes, **options)
        seconds = time.monotonic() - begun
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return facts, seconds

    with nothing_left():
        return asyncio.run(run())


@contextmanager
def nothing_left() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        before = len([*Path("/proc/self/fd").iterdir()])
        yield
        gc.collect()
        assert len([*Path("/proc/self/fd").iterdir()]) <= before
    assert not [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)]


@contextmanager
def listener(*, full: bool = False) -> Iterator[int]:
    """Listen on a TCP port; a full one answers no further SYN, as a packet filter does."""
    with ExitStack() as open_ones:
        server = open_ones.enter_context(socket.socket())
        server.bind((HERE, 0))
        server.listen(0)
        port = server.getsockname()[1]
        for _ in range(4 if full else 0):
            client = open_ones.enter_context(socket.socket())
            client.settimeout(0)
            client.connect_ex((HERE, port))
        time.sleep(0.05 if full else 0)
        yield port


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])


def test_the_stand_ins_are_a_lane_and_a_session() -> None:
    assert isinstance(MemoryLane(), Lane)
    assert isinstance(MemorySession(), Session)


def test_everything_at_once() -> None:
    heard: list[Event] = []
    closed = closed_port()
    session = MemorySession(node=Node(name="n1", ports=Ports(torrent=closed)))
    with listener() as data:
        facts, _ = learn(session, address=(HERE, 22), ports=[data, closed], grace=None, emit=heard.append)
    assert facts.answers.keys() >= {probe.name for probe in STANDARD} - {"reach", "places"}
    tools, system, space = facts.get(TOOLS), facts.get(SYSTEM), facts.get(SPACE)
    assert tools is not None
    assert "python3" in tools
    assert system is not None
    assert system.hostname == os.uname().nodename
    assert system.python == "3.11.2"  # the agent's own, from its greeting
    assert space is not None
    assert space["/tmp"] > 0
    client = facts.get(CLIENT)
    assert client is not None
    assert client.host == HERE
    assert facts.get(PORTS) == {data: "open", closed: "refused"}
    assert facts.get(DHT) == "refused"
    assert facts.get(CLEAN) is True
    rtt = facts.get(RTT)
    assert rtt is not None
    assert 0 < rtt < 0.5
    assert abs(facts.taken - time.time()) < 10
    (event,) = heard
    assert isinstance(event, Probed)
    assert (event.node, event.facts["clean"]) == ("n1", "yes")
    assert event.seconds > 0


def test_one_probe_call_carries_the_plugins_probes() -> None:
    mine: Probe[str] = Probe("mine", "echo hello from $((6 * 7)); echo oops >&2", str.strip)
    failing: Probe[str] = Probe("failing", "exit 3", lambda text: text or None)
    latin: Probe[str] = Probe("latin", r"printf '\344\n'", str.strip)
    outside: Probe[str] = Probe("outside", None, str.strip)
    session = MemorySession()
    facts, _ = learn(session, [TOOLS, mine, failing, latin, outside])
    assert session.lane.calls.count("probe") == 1
    assert facts.get(mine) == "hello from 42"
    assert facts.get(failing) is None
    assert facts.get(latin) == "?"
    assert facts.get(outside) is None


# Ports


def test_a_filtered_port_does_not_slow_the_first_byte() -> None:
    with listener(full=True) as filtered, listener() as data:
        session = MemorySession(login=0.5)
        probes = [CLIENT, PORTS, DHT, RTT]
        facts, seconds = learn(session, probes, address=(HERE, 22), ports=[filtered, data])
    assert facts.get(PORTS) == {filtered: "filtered", data: "open"}
    assert seconds < 0.5 + 0.29  # less than it would take to wait for silence after the login


def test_silence_is_given_four_round_trips() -> None:
    with listener(full=True) as filtered:
        session = MemorySession(lane=MemoryLane(delay=0.2))
        facts, seconds = learn(session, [PORTS], address=(HERE, 22), ports=[filtered])
    assert facts.get(PORTS) == {filtered: "filtered"}
    assert 0.75 < seconds < 2


def test_a_warm_login_waits_for_silence_no_longer_than_it_takes() -> None:
    with listener(full=True) as filtered:
        facts, seconds = learn(MemorySession(), [PORTS], address=(HERE, 22), ports=[filtered])
    assert facts.get(PORTS) == {filtered: "filtered"}
    assert 0.28 < seconds < 1


def test_grace_is_the_time_in_total() -> None:
    with listener(full=True) as filtered:
        session = MemorySession(login=0.3)
        facts, seconds = learn(session, [PORTS], address=(HERE, 22), ports=[filtered], grace=0.8)
    assert facts.get(PORTS) == {filtered: "filtered"}
    assert 0.75 < seconds < 2


def test_with_grace_nothing_waits_once_all_is_answered() -> None:
    with listener() as data:
        facts, seconds = learn(MemorySession(), [PORTS, REACH, RTT], address=(HERE, 22), ports=[data], grace=5.0)
    assert facts.get(PORTS) == {data: "open"}
    assert facts.get(REACH) is True
    assert seconds < 4


def test_the_port_of_ssh_is_left_alone() -> None:
    with socket.create_server((HERE, 0)) as sshd:
        port = sshd.getsockname()[1]
        facts, _ = learn(MemorySession(), [PORTS], address=(HERE, port), ports=[port, 0, 70000])
        sshd.settimeout(0)
        with pytest.raises(BlockingIOError):
            sshd.accept()
    assert facts.get(PORTS) == {port: "open"}


def test_both_families_of_a_name_are_tried() -> None:
    with listener() as data:
        facts, _ = learn(MemorySession(), [PORTS], address=("localhost", 22), ports=[data])
    assert facts.get(PORTS) == {data: "open"}


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".example", ""])
def test_a_name_that_cannot_be_resolved_leaves_ports_unknown(host: str) -> None:
    facts, _ = learn(MemorySession(), [PORTS, DHT, CLEAN], address=(host, 22), ports=[closed_port()])
    assert facts.get(CLEAN) is True
    if host:
        assert PORTS.name not in facts.answers
        assert DHT.name not in facts.answers


def test_without_a_direct_way_nothing_is_said_about_ports() -> None:
    facts, seconds = learn(MemorySession(), [CLEAN, PORTS, DHT], address=None, ports=[closed_port()])
    assert facts.answers.keys() == {"clean", "rtt"}
    assert seconds < 0.3


# Ports at further addresses

OTHER = "127.0.0.2"


def test_ports_are_looked_for_at_all_addresses() -> None:
    with listener(full=True) as filtered, socket.create_server((OTHER, filtered)):
        facts, seconds = learn(
            MemorySession(), [PORTS], address=(HERE, 22), ports=[filtered], elsewhere=[(OTHER, None), (HERE, 22)]
        )
    assert facts.get(PORTS) == {filtered: "open"}
    assert facts.get(PLACES) == {filtered: {HERE: "filtered", OTHER: "open"}}
    assert seconds < 1


def test_further_addresses_that_are_silent_cost_no_more_than_a_silent_port() -> None:
    silent = [(f"192.0.2.{number}", None) for number in range(1, 9)]
    with listener() as data:
        facts, seconds = learn(MemorySession(), [PORTS], address=(HERE, 22), ports=[data], elsewhere=silent)
    assert facts.get(PORTS) == {data: "open"}
    assert seconds < 1  # 0.3 s, however many they are


def test_without_a_direct_way_a_further_address_may_be_one() -> None:
    with socket.create_server((OTHER, 0)) as data:
        port = data.getsockname()[1]
        slow = MemorySession(lane=MemoryLane(delay=0.05))
        facts, _ = learn(slow, [PORTS, DHT, RTT], address=None, ports=[port], elsewhere=[(OTHER, None)])
    assert facts.get(PORTS) == {port: "open"}
    assert facts.get(PLACES) == {port: {OTHER: "open"}}
    assert DHT.name not in facts.answers
    rtt = facts.get(RTT)
    assert rtt is not None
    assert rtt >= 0.05  # who answers there says nothing of the way that SSH takes


def test_the_port_of_ssh_is_left_alone_at_further_addresses_too() -> None:
    with socket.create_server((OTHER, 0)) as sshd:
        port = sshd.getsockname()[1]
        facts, _ = learn(MemorySession(), [PORTS], address=(HERE, 22), ports=[port], elsewhere=[(OTHER, port)])
        sshd.settimeout(0)
        with pytest.raises(BlockingIOError):
            sshd.accept()
    assert facts.get(PLACES) == {port: {HERE: "refused"}}


def test_a_further_name_that_cannot_be_resolved_is_no_way() -> None:
    with listener() as data:
        nobody = "no-such-host.invalid"
        facts, _ = learn(
            MemorySession(), [PORTS], address=(HERE, 22), ports=[data], elsewhere=[(nobody, None)], grace=5.0
        )
    assert facts.get(PLACES) == {data: {HERE: "open", nobody: "unreachable"}}


# The node's way to us


def test_the_node_reaches_us() -> None:
    facts, _ = learn(MemorySession(), grace=2.0)
    assert facts.get(REACH) is True


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a busy machine more time than a move would."""
    monkeypatch.setattr("rrmove.gather.REACH_LEAST", 3.0)
    monkeypatch.setattr("rrmove.gather.REACH_MOST", 3.0)


@pytest.mark.usefixtures("unhurried")
def test_reach_is_answered_without_grace() -> None:
    facts, _ = learn(MemorySession(lane=MemoryLane(delay=0.05)), [REACH])
    assert facts.get(REACH) is True


def test_behind_nat_the_first_byte_waits_for_a_moment_only() -> None:
    async def swallowed(_host: str, _port: int, timeout: float) -> str:
        await asyncio.sleep(timeout)
        return "filtered"

    session = MemorySession(lane=MemoryLane(reach=swallowed))
    facts, seconds = learn(session, [REACH])
    assert REACH.name not in facts.answers
    assert seconds < 0.9
    facts, seconds = learn(session, [REACH], grace=1.5)
    assert facts.get(REACH) is False
    assert 1.0 < seconds < 2.5


@pytest.mark.usefixtures("unhurried")
def test_someone_else_answering_for_us_is_not_us() -> None:
    async def proxied(*_: object) -> str:
        return "open"

    facts, _ = learn(MemorySession(lane=MemoryLane(reach=proxied)), [REACH])
    assert facts.get(REACH) is False


def test_reach_is_not_asked_unless_wanted() -> None:
    session = MemorySession()
    learn(session, [CLEAN])
    assert "reach" not in session.lane.calls
    learn(session, [CLEAN], grace=0.1)
    assert "reach" in session.lane.calls


@pytest.mark.parametrize("sees", ["", "UNKNOWN 65535 UNKNOWN 65535"])
def test_a_node_that_does_not_see_us_is_not_asked(sees: str) -> None:
    session = MemorySession(lane=MemoryLane(sees=sees))
    facts, _ = learn(session, [REACH])
    assert "reach" not in session.lane.calls
    assert facts.get(REACH) is None


# The channel


@pytest.mark.parametrize(
    "mangle",
    [lambda data: bytes(b & 0x7F for b in data), lambda data: data.replace(b"\n", b"\r\n")],
    ids=["7-bit", "crlf"],
)
def test_a_channel_that_changes_bytes_is_not_clean(mangle: Callable[[bytes], bytes]) -> None:
    facts, _ = learn(MemorySession(lane=MemoryLane(mangle=mangle)))
    assert facts.get(CLEAN) is False


def test_round_trips_are_timed_without_the_login() -> None:
    facts, seconds = learn(MemorySession(lane=MemoryLane(delay=0.1), login=0.3), [RTT, CLEAN])
    rtt = facts.get(RTT)
    assert rtt is not None
    assert 0.1 <= rtt < 0.25
    assert seconds < 0.3 + 0.2 + 0.3  # the login, the greeting, one more round trip


# What goes wrong


@pytest.mark.parametrize("error", [Fatal("unknown host key", node="n1"), Transient("reset")])
def test_the_logins_error_is_raised_as_it_is(error: TransportError) -> None:
    cause = ValueError("the reason")
    error.__cause__ = cause
    with listener(full=True) as filtered, pytest.raises(type(error)) as caught:
        learn(MemorySession(error=error, login=0.05), address=(HERE, 22), ports=[filtered])
    assert caught.value is error
    assert error.__cause__ is cause


@pytest.mark.parametrize("op", ["hello", "probe", "reach"])
def test_a_lane_that_dies_is_transient(op: str) -> None:
    session = MemorySession(lane=MemoryLane(fails={op: Transient("connection reset")}))
    with pytest.raises(Transient):
        learn(session)


def test_what_the_agent_cannot_do_is_unknown() -> None:
    no = Unusable("this agent cannot do that")
    session = MemorySession(lane=MemoryLane(fails={"hello": no, "probe": no, "reach": no}))
    facts, _ = learn(session, grace=0.1)
    assert facts.answers == {}
    session = MemorySession(lane=MemoryLane(fails={"reach": no}))
    facts, _ = learn(session, grace=0.1)
    assert facts.get(REACH) is None
    assert facts.get(TOOLS) is not None


@pytest.mark.parametrize("outputs", [None, [], {"tools": 7, "other": "text"}, "tools"])
def test_a_reply_out_of_form_is_unknown(outputs: object) -> None:
    class Odd(MemoryLane):
        async def _probe(self, _body: Body, asks: dict[str, str]) -> Reply:  # noqa: ARG002
            return Reply({"outputs": outputs})

    facts, _ = learn(MemorySession(lane=Odd()), [TOOLS])
    assert facts.answers.keys() == {"clean", "rtt"}


def test_a_node_that_never_answers_its_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrmove.gather.ANSWERS_WITHIN", 0.2)
    facts, seconds = learn(MemorySession(lane=MemoryLane(hangs=True)))
    assert facts.answers.keys() == {"clean", "rtt"}
    assert seconds < 1


@pytest.mark.parametrize("after", [0.0, 0.02, 0.12, 0.3])
def test_cancelled_it_leaves_nothing(after: float) -> None:
    async def cut(filtered: int) -> None:
        session = MemorySession(lane=MemoryLane(delay=0.02), login=0.05)
        work = asyncio.create_task(gather(session, address=(HERE, 22), ports=[filtered], grace=5.0))
        await asyncio.sleep(after)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with listener(full=True) as filtered, nothing_left():
        asyncio.run(cut(filtered))
