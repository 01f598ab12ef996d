"""The race between addresses, against real sockets: who wins, and what the others are said to have done."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rrmove.ssh import dial as dialing
from rrmove.ssh.addresses import read_report
from rrmove.ssh.dial import UnansweredError, dial

if TYPE_CHECKING:
    from collections.abc import Iterator

WORD = b"SSH-2.0-test\r\n"
HOST = "127.0.0.1"


@contextmanager
def server(*pieces: bytes, after: float = 0.0, close: bool = False) -> Iterator[int]:
    """A port where each connection is told these pieces, and is then held or closed."""
    with socket.create_server((HOST, 0)) as listener, ExitStack() as held:

        def serve() -> None:
            while True:
                try:
                    sock = listener.accept()[0]
                except OSError:
                    return
                time.sleep(after)
                try:
                    for piece in pieces:
                        sock.sendall(piece)
                        time.sleep(0.03)
                except OSError:  # the race is over
                    pass
                if close:
                    sock.close()
                else:
                    held.callback(sock.close)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port at which connects are refused."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        yield sock.getsockname()[1]


@pytest.fixture
def hole() -> Iterator[int]:
    """A port at which connects come to no end: its queue is full."""
    with socket.create_server((HOST, 0), backlog=0) as listener, ExitStack() as fillers:
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield listener.getsockname()[1]


def test_the_first_wins_where_it_answers_and_its_word_is_left_to_be_read() -> None:
    with server(WORD) as first, server(WORD) as second:
        won = dial([(HOST, first), (HOST, second)])
        with won.sock:
            assert won.place == (HOST, first)
            assert won.address == HOST
            assert list(won.tried) == [f"{HOST} port {first}"]
            won.sock.setblocking(True)
            assert won.sock.recv(100) == WORD


def test_a_refused_address_costs_nothing(nobody: int) -> None:
    with server(WORD) as good:
        won = dial([(HOST, nobody), (HOST, good)], head_start=30.0)
        won.sock.close()
        assert won.place == (HOST, good)
        assert won.tried[f"{HOST} port {nobody}"] == "Connection refused"


def test_a_black_hole_is_passed_after_its_head_start(hole: int) -> None:
    with server(WORD) as good:
        began = time.monotonic()
        won = dial([(HOST, hole), (HOST, good)], head_start=0.1, patience=20)
        won.sock.close()
        assert 0.1 <= time.monotonic() - began < 10
        assert won.place == (HOST, good)
        assert won.tried[f"{HOST} port {hole}"].startswith("no answer within")


@pytest.mark.parametrize(
    ("pieces", "close", "said"),
    [
        ((b"",), True, "closed before"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), True, "closed before"),
        ((b"x" * 9000,), False, "no SSH server"),
        ((), False, "connected, but no SSH server answers"),
        ((b"SS",), False, "connected, but no SSH server answers"),
    ],
)
def test_a_bare_connect_wins_nothing(pieces: tuple[bytes, ...], said: str, *, close: bool) -> None:
    """A box in between accepts everything; only an SSH server's first word counts."""
    with server(*pieces, close=close) as box, pytest.raises(UnansweredError) as caught:
        dial([(HOST, box)], patience=0.4)
    assert said in caught.value.tried[f"{HOST} port {box}"]
    with server(*pieces, close=close) as box, server(WORD) as good:
        won = dial([(HOST, box), (HOST, good)], head_start=0.05)
        won.sock.close()
        assert won.place == (HOST, good)


@pytest.mark.parametrize("pieces", [(b"SS", b"H-2.0-x\r\n"), (b"Welcome\r\n", b"to us\r\nSSH-2.0-x\r\n")])
def test_a_first_word_in_pieces_or_behind_a_greeting_is_one(pieces: tuple[bytes, ...]) -> None:
    with server(*pieces) as good:
        won = dial([(HOST, good)])
        won.sock.close()
        assert won.place == (HOST, good)


def test_the_quicker_one_wins_where_the_first_is_slow() -> None:
    with server(WORD, after=5.0) as slow, server(WORD) as quick:
        won = dial([(HOST, slow), (HOST, quick)], head_start=0.05)
        won.sock.close()
        assert won.place == (HOST, quick)


def test_where_nobody_answers_each_is_named(nobody: int) -> None:
    with server(close=True) as closing, pytest.raises(UnansweredError) as caught:
        dial([(HOST, nobody), (HOST, closing), ("no.such.host.invalid", 22)], patience=5)
    assert {where.rsplit(" ", maxsplit=1)[-1] for where in caught.value.tried} == {str(nobody), str(closing), "22"}
    assert "cannot be resolved" in caught.value.tried["no.such.host.invalid port 22"]


def test_what_is_shut_is_left_alone_and_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(WORD) as good:
        six = ("2001:db8::1", good, 0, 0)
        found = {
            "twofold": [(socket.AF_INET, ("127.0.0.2", good)), (socket.AF_INET, (HOST, good)), (socket.AF_INET6, six)]
        }
        real = socket.getaddrinfo

        def looked_up(host: str, *rest: object) -> list[object]:
            if host not in found or rest[-1] == socket.AI_NUMERICHOST:
                return list(real(host, *rest))  # type: ignore[arg-type]
            return [(family, socket.SOCK_STREAM, 6, "", where) for family, where in found[host]]

        monkeypatch.setattr(socket, "getaddrinfo", looked_up)
        won = dial([("twofold", good)], shut={("127.0.0.2", good)}, head_start=0.05)
        won.sock.close()
        assert won.place == ("twofold", good)
        assert won.address == HOST
        assert f"127.0.0.2 port {good}" not in won.tried
        with pytest.raises(UnansweredError, match="no address is left"):
            dial([(HOST, good)], shut={(HOST, good)})


def test_nothing_is_left_open(nobody: int, hole: int) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    with server(WORD) as good:
        before = descriptors()
        for _ in range(3):
            dial([(HOST, nobody), (HOST, hole), (HOST, good)], head_start=0.01).sock.close()
        end = time.monotonic() + 5
        while descriptors() > before + 3 and time.monotonic() < end:  # the server's ends are ours, too
            time.sleep(0.02)
        assert descriptors() <= before + 3


def test_as_a_program_it_hands_the_connection_over(nobody: int) -> None:
    ours, theirs = socket.socketpair()
    with server(WORD) as good, ours, theirs:
        words = [f"{HOST},{nobody}", f"not:127.0.0.9,{good}", f"127.0.0.9,{good}", f"{HOST},{good}"]
        argv = [sys.executable, "-I", "-S", str(Path(dialing.__file__)), "--head-start", "0.2", "--report", *words]
        done = subprocess.run(
            argv,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
            text=True,
            check=True,
            timeout=20,
        )
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=fd) as sock:
            assert sock.recv(100) == WORD
        report = read_report(done.stderr)
        assert report is not None
        assert report.won is not None
        assert report.won[0] == (HOST, good)
        assert report.tried[f"{HOST} port {nobody}"] == "Connection refused"
        failed = subprocess.run(
            [*argv[:-1]], stdout=theirs.fileno(), stderr=subprocess.PIPE, text=True, check=False, timeout=20
        )
        assert failed.returncode == 1
        assert f"connect to host {HOST} port {nobody}: Connection refused" in failed.stderr
