"""DHT: bencoding against hostile bytes, and pings to a real node, a deaf port and a closed one."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove.dht import DEPTH, Bencoded, answers_ping, bdecode, bencode, ping, ping_query

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VALUES: st.SearchStrategy[Bencoded] = st.recursive(
    st.integers(-(10**19), 10**19) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ID = b"abcdefghij0123456789"


@given(VALUES)
def test_what_is_written_is_read(value: Bencoded) -> None:
    assert bdecode(bencode(value)) == value


@given(st.binary() | st.text("0123456789:deil-").map(str.encode) | st.text("ld").map(str.encode))
def test_hostile_bytes_raise_value_error_only(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        bdecode(data)
    assert not answers_ping(data, b"tt")


@given(VALUES, st.integers(0, 200), st.integers(0, 255))
def test_damaged_messages_raise_value_error_only(value: Bencoded, at: int, byte: int) -> None:
    data = bytearray(bencode(value))
    data[at % len(data)] = byte
    with contextlib.suppress(ValueError):
        bdecode(bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"i", b"ie", b"i-0e", b"i03e", b"i1", b"i" + b"9" * 5000 + b"e", b"5:abcd", b"05:abcde",
        b"-1:", b"99999999999:a", b"d", b"de1", b"di1ei2ee", b"d1:ae", b"l", b"le4", b"i1ei2e",
        b"l" * 60_000, b"l" * 60_000 + b"e" * 60_000, b"d1:a" * 15_000, b"\xff\xfe",
        b"l" * DEPTH + b"i1e" + b"e" * DEPTH,
    ],
    ids=lambda data: repr(data[:16]),
)  # fmt: skip
def test_what_is_no_bencoding(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no |deep|missing|too many"):
        bdecode(data)


def test_the_query_is_the_one_of_bep_5() -> None:
    assert ping_query(b"aa", ID) == b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe"


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        (b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t2:aa1:y1:re", True),
        (b"d1:y1:r1:t2:aa1:rd2:id20:mnopqrstuvwxyz123456ee", True),  # keys in any order
        (b"d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee", True),
        (b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t2:ab1:y1:re", False),  # another's answer
        (b"d1:rd2:id20:mnopqrstuvwxyz123456e1:y1:re", False),
        (b"d1:r4:oops1:t2:aa1:y1:re", False),
        (ping_query(b"aa", ID), False),  # an echo service
        (b"li1ee", False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False),
    ],
)
def test_what_counts_as_an_answer(data: bytes, *, answers: bool) -> None:
    assert answers_ping(data, b"aa") is answers


def test_what_cannot_be_written() -> None:
    with pytest.raises(TypeError):
        bencode([1, True])
    with pytest.raises(TypeError):
        bencode({b"a": "text"})  # type: ignore[dict-item]


# Over UDP


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def dht_node(tmp_path: Path) -> Iterator[int]:
    """Run aria2c as a DHT node on loopback, waiting for a torrent that nobody has."""
    aria2c = shutil.which("aria2c")
    if aria2c is None:
        pytest.skip("no aria2c here")
    port = free_udp_port()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                aria2c, "--no-conf", f"--dir={tmp_path}", "--enable-dht=true", "--enable-dht6=false",
                f"--dht-listen-port={port}", f"--listen-port={port}", "--interface=127.0.0.1",
                f"--dht-file-path={tmp_path / 'dht.dat'}", "--bt-enable-lpd=false",
                "magnet:?xt=urn:btih:" + "0123456789" * 4,
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield port
        finally:
            process.kill()
            process.wait()


def test_a_real_node_answers(dht_node: int) -> None:
    async def until_it_is_up() -> str:
        async with asyncio.timeout(10):
            while (state := await ping("127.0.0.1", dht_node, 1.0)) == "refused":
                await asyncio.sleep(0.05)
        return state

    assert asyncio.run(until_it_is_up()) == "answers"


def test_a_closed_port_refuses_at_once() -> None:
    begun = time.monotonic()
    assert asyncio.run(ping("127.0.0.1", free_udp_port(), 5.0)) == "refused"
    assert time.monotonic() - begun < 1


def test_a_deaf_port_is_silent_and_is_asked_again() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        begun = time.monotonic()
        assert asyncio.run(ping("127.0.0.1", deaf.getsockname()[1], 0.6)) == "silent"
        assert 0.5 < time.monotonic() - begun < 1.5
        deaf.settimeout(0)
        queries = {deaf.recv(2048) for _ in range(2)}
        assert len(queries) == 1
        assert bdecode(queries.pop())


def test_noise_is_no_answer() -> None:
    async def talk() -> str:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
            echo.bind(("127.0.0.1", 0))
            echo.settimeout(0)

            async def respond() -> None:
                while True:
                    data, sender = await loop.sock_recvfrom(echo, 2048)
                    for noise in (data, b"", b"l" * 5000, b"\xff" * 20):
                        await loop.sock_sendto(echo, noise, sender)

            responder = asyncio.create_task(respond())
            try:
                return await ping("127.0.0.1", echo.getsockname()[1], 0.4)
            finally:
                responder.cancel()

    assert asyncio.run(talk()) == "silent"


def test_cancelled_it_leaves_no_socket(recwarn: pytest.WarningsRecorder) -> None:
    async def cut() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
            deaf.bind(("127.0.0.1", 0))
            asking = asyncio.create_task(ping("127.0.0.1", deaf.getsockname()[1], 5.0))
            await asyncio.sleep(0.05)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(cut())
    assert not [w for w in recwarn if issubclass(w.category, ResourceWarning)]
