"""Limits: many clients, slow clients, large bodies; who behaves is served whatever others do."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.serving.served import Served

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 1.5


@pytest.fixture(scope="module", params=["plain", "tls"])
def hasty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve with little patience, 80 connections and bodies of 3 MB at most."""
    options = ("--patience", str(PATIENCE), "--max-connections", "80", "--max-body", "3M")
    where = tmp_path_factory.mktemp("hasty")
    with Served(where, options, plain=request.param == "plain") as served:
        yield served


def ended(sock: socket.socket, within: float = 15.0) -> tuple[bytes, float]:
    """Wait until the server closes, and give what it said, and after how many seconds."""
    begun, said = time.monotonic(), b""
    sock.settimeout(within)
    with contextlib.suppress(ConnectionError):
        while block := sock.recv(65536):
            said += block
    return said, time.monotonic() - begun


def test_64_clients_that_read_and_write_at_once(both: Served) -> None:
    shared = os.urandom(1_000_000)
    (both.data / "shared").write_bytes(shared)
    own = {number: os.urandom(200_000 + number) for number in range(64)}
    wrong: list[object] = []
    gate = threading.Barrier(64)

    def client(number: int) -> None:
        gate.wait()
        try:
            start = number * 15_000
            got = both.ask("GET", "/v1/files/data/shared", headers={"Range": f"bytes={start}-"})
            if (got.status, got.body) != (206, shared[start:]):
                wrong.append((number, got.status))
            done = both.upload(own[number], f"many/{number}")
            if done.status != 200:
                wrong.append((number, done.body))
        except (OSError, AssertionError) as error:
            wrong.append((number, error))

    threads = [threading.Thread(target=client, args=(number,)) for number in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all((both.data / "many" / str(number)).read_bytes() == data for number, data in own.items())
    assert not list((both.data / "many").glob(".*"))


def test_slow_headers_keep_nobody_out(hasty: Served) -> None:
    """More connections than there are places, all silent or dribbling: one that behaves gets its turn."""
    socks = []
    for number in range(100):
        sock = socket.create_connection(("127.0.0.1", hasty.port), timeout=10)
        if hasty.plain and number % 2:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        socks.append(sock)
    stop = threading.Event()

    def dribble() -> None:
        while not stop.wait(0.2):
            for sock in socks[1::2]:
                with contextlib.suppress(OSError):
                    sock.sendall(b"x")

    thread = threading.Thread(target=dribble)
    if hasty.plain:
        thread.start()
    begun = time.monotonic()
    try:
        assert hasty.ask("GET", "/healthz").status == 200
    finally:
        stop.set()
        if hasty.plain:
            thread.join()
        for sock in socks:
            sock.close()
    assert PATIENCE / 3 < time.monotonic() - begun < 10 * PATIENCE, "it did not have to wait: the places were not taken"


def test_a_slow_body_is_ended_and_what_came_is_kept(hasty: Served) -> None:
    data = os.urandom(3_000_000)
    begun = hasty.begin(data, "slow").json
    sock = hasty.half_put(begun, data, 0, len(data), 2_500_000)
    said, seconds = ended(sock)
    assert b" 408 " in said.split(b"\r\n")[0]
    assert seconds > PATIENCE / 2
    survey = hasty.ask("POST", f"/v1/uploads/{begun['id']}/survey").json
    assert survey["missing"] == [[2 << 20, len(data)]]


def test_a_dribbling_body_is_ended(hasty: Served) -> None:
    data = os.urandom(100_000)
    begun = hasty.begin(data, "dribble").json
    sock = hasty.half_put(begun, data, 0, len(data), 10)
    end = time.monotonic() + 20
    with contextlib.suppress(OSError):
        for at in range(10, len(data)):
            sock.sendall(data[at : at + 1])
            time.sleep(0.05)
            assert time.monotonic() < end, "it is still being served"
            sock.settimeout(0.001)
            with contextlib.suppress(TimeoutError):
                if sock.recv(1):
                    break
            sock.settimeout(5)
    assert time.monotonic() < end
    sock.close()


def test_one_who_does_not_read_is_cut_off(hasty: Served) -> None:
    with (hasty.data / "huge").open("wb") as file:
        file.truncate(1 << 30)
    sock = hasty.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(f"GET /v1/files/data/huge HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {hasty.token}\r\n\r\n".encode())
    sock.recv(100)
    end = time.monotonic() + 30
    while not any("takes too little" in str(line.get("error")) for line in hasty.log()):
        assert time.monotonic() < end, "it still waits for its reader"
        time.sleep(0.1)
    sock.close()


def test_large_bodies_are_refused_before_they_are_sent(hasty: Served) -> None:
    data = os.urandom(4_000_000)
    begun = hasty.begin(data, "large").json
    assert hasty.put(begun, data, 0, 3_000_001).status == 413
    assert hasty.put(begun, data, 0, 3_000_000).status == 200
    head = f"POST /v1/uploads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {hasty.token}\r\n"
    assert b" 413 " in hasty.raw(f"{head}Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n".encode())
    answer = hasty.raw(
        f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"900000\r\n" + b" " * 0x900000 + b"\r\n0\r\n\r\n"
    )
    assert b" 413 " in answer.split(b"\r\n")[0]


def test_a_waiting_client_is_told_to_go_on_only_when_it_may(hasty: Served) -> None:
    data = os.urandom(1000)
    begun = hasty.begin(data, "continue").json
    for token, first in ((hasty.token, b"HTTP/1.1 100 "), ("wrong", b"HTTP/1.1 401 ")):
        with hasty.socket() as sock:
            head = (
                f"PUT {begun['put']} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nExpect: 100-continue\r\n"
            )
            sock.sendall(f"{head}Content-Range: bytes 0-999/1000\r\nContent-Length: 1000\r\n\r\n".encode())
            assert sock.recv(4096).startswith(first)
            if token == hasty.token:
                sock.sendall(data)
                assert b" 200 " in sock.recv(4096)


def test_large_headers_are_refused(hasty: Served) -> None:
    assert b" 400 " in hasty.raw(b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n")
    assert b" 400 " in hasty.raw(b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\n\r\n")
    assert b" 400 " in hasty.raw(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n")


def test_it_is_all_counted(hasty: Served) -> None:
    assert hasty.upload(b"counted", "counted").status == 200
    assert hasty.ask("GET", "/v1/files/data/counted").body == b"counted"
    text = hasty.ask("GET", "/metrics").body.decode()
    for name in ("requests_total", "received_bytes_total", "sent_bytes_total", "committed_total", "connections"):
        values = [float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"rrmove_serve_{name}")]
        assert sum(values) > 0, name
    assert 'method="PUT",status="200"' in text
    connections = next(line for line in text.splitlines() if line.startswith("rrmove_serve_connections "))
    assert float(connections.split()[1]) <= 80
