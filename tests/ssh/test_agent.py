"""The agent's protocol, frame by frame, over its own pipes: no lane in between."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import itertools
import json
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rrmove.ssh import agent
from rrmove.ssh.boot import PIECES, agent_source, agent_text
from tests.ssh.local import alive, until

HEADER = struct.Struct(">4sII")
EVERY_BYTE = bytes(range(256))
PROOF = b"\nRRMOVE-BYTES " + EVERY_BYTE + b"\0RRMOVE-READY\n"
SOURCE = agent_source()
MIB = 1 << 20


@dataclass(frozen=True)
class Frame:
    fields: dict[str, Any]
    body: bytes

    @property
    def id(self) -> int:
        return int(self.fields["id"])

    @property
    def errno(self) -> str:
        return str(self.fields["error"]["errno"])


@dataclass
class Wire:
    """An agent's process, and frames to and from it."""

    home: Path
    program: str = sys.executable
    process: subprocess.Popen[bytes] = field(init=False)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    beats: int = 0

    def __enter__(self) -> Self:
        environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "LC_ALL": "C", "RRMOVE_AGENT": "1"}
        self.process = subprocess.Popen(
            [self.program, "-I", "-S", "-c", SOURCE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self.give(EVERY_BYTE)
        assert self.take(len(PROOF)) == PROOF
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # what was not flushed to the dead is no loss
                stream.close()

    def give(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def take(self, size: int) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read(size)

    def ask(self, op: str, body: bytes = b"", **arguments: object) -> int:
        number = next(self.numbers)
        self.give(frame({"op": op, "id": number, **arguments}, body))
        return number

    def hear(self) -> Frame:
        """Read the next answer; beats are counted."""
        while True:
            magic, fields_length, body_length = HEADER.unpack(self.take(HEADER.size))
            assert magic == b"RRM1"
            heard = Frame(json.loads(self.take(fields_length)), self.take(body_length))
            if heard.id:
                return heard
            self.beats += 1

    def call(self, op: str, body: bytes = b"", **arguments: object) -> Frame:
        number = self.ask(op, body, **arguments)
        heard = self.hear()
        assert heard.id == number
        return heard

    def rest(self) -> tuple[bytes, str, int]:
        """Wait for the end: what else came, what it said on stderr, and its status."""
        out, errors = self.process.communicate(timeout=20)
        return out, errors.decode(), self.process.returncode


def frame(fields: dict[str, object], body: bytes = b"") -> bytes:
    head = json.dumps(fields).encode("ascii")
    return HEADER.pack(b"RRM1", len(head), len(body)) + head + body


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wire(tmp_path) as opened:
        yield opened


def opened(wire: Wire, size: int, name: str = "file") -> dict[str, Any]:
    found = wire.call("locate", destination=name, name=name, key="0123456789ab").fields
    made = wire.call("open", part=found["part"], journal=found["journal"], note={"a": 1}, size=size, need=size)
    assert "error" not in made.fields
    return {**found, **made.fields}


# What it is made of


def test_the_source_is_python_3_6() -> None:
    tree = ast.parse(SOURCE, feature_version=(3, 6))
    # What feature_version does not look at: syntax is one thing, the library another.
    newer = {"removeprefix", "removesuffix", "capture_output", "fromisoformat", "time_ns", "missing_ok"}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    used |= {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}
    assert not used & newer
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.NamedExpr | ast.Match)]


def test_every_piece_is_sent_and_none_takes_a_name_of_another() -> None:
    folder = Path(agent.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", *PIECES}
    given = []
    for node in ast.parse(SOURCE).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            given.append(node.name)
        elif isinstance(node, ast.Assign):
            given += [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    assert len(given) > 50
    assert sorted(given) == sorted(set(given))


def test_the_source_imports_the_standard_library_alone() -> None:
    names = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        assert not isinstance(node, ast.ImportFrom)
    assert names <= sys.stdlib_module_names
    assert "rrmove" not in names


def interpreter(minor: int) -> str | None:
    """Find a Python of this version: on PATH, or where pyenv keeps them."""
    kept = sorted(Path(pwd.getpwuid(os.getuid()).pw_dir).glob(f".pyenv/versions/3.{minor}.*/bin/python3"))
    found = [path for path in (shutil.which(f"python3.{minor}"), *map(str, kept)) if path]
    for path in found:  # pyenv's shims are there for versions that they do not start
        if subprocess.run([path, "-c", ""], check=False, capture_output=True).returncode == 0:
            return path
    return None


@pytest.mark.parametrize("minor", range(6, 15))
def test_the_agent_runs_on_every_python_that_is_here(minor: int, tmp_path: Path) -> None:
    program = interpreter(minor)
    if program is None:
        pytest.skip(f"there is no python3.{minor} here")
    with Wire(tmp_path, program) as wire:
        assert wire.call("hello").fields["python"].startswith(f"3.{minor}.")
        data = os.urandom(300_000)
        found = opened(wire, len(data))
        for at in range(0, len(data), 100_000):
            wire.call("put", data[at : at + 100_000], part=found["part"], at=at)
        assert wire.call("run", b"in", argv=["cat"], timeout=10).body == b"in"
        assert wire.call("probe", asks={"e": "echo here"}).fields["outputs"] == {"e": "here\n"}
        assert wire.call("evict", part=found["part"]).fields["ended"] == []
        done = wire.call(
            "commit", part=found["part"], journal=found["journal"], target=found["target"], size=len(data),
            ino=found["ino"], mode=0o640, mtime_ns=5 * 10**9, check=[[0, len(data), digest(data)]],
        )  # fmt: skip
        assert "error" not in done.fields
        assert Path(found["target"]).read_bytes() == data
        assert wire.call("sweep", directories=[""], older_than=0, depth=2).fields["removed"] == []


def test_the_line_that_is_sent_is_printable_and_small() -> None:
    line = agent_text()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line[:-1].isascii()
    assert len(line) < 16 << 10  # it goes with every connection, into the first round trip's window or two


# The stream


def test_frames_may_come_in_any_pieces(wire: Wire) -> None:
    data = frame({"op": "hello", "id": 7}, b"piecewise") * 3
    for at in range(0, len(data), 5):
        wire.give(data[at : at + 5])
    for _ in range(3):
        heard = wire.hear()
        assert (heard.id, heard.body) == (7, b"piecewise")


def test_everything_may_be_asked_before_anything_is_answered(wire: Wire) -> None:
    data = bytes(range(256)) * 4096
    found = wire.call("locate", destination="f", name="f", key="k").fields
    wire.ask("open", part=found["part"], journal=found["journal"], note={}, size=len(data), need=0)
    assert "error" not in wire.hear().fields
    step = 64 << 10
    puts = {wire.ask("put", data[at : at + step], part=found["part"], at=at): at for at in range(0, len(data), step)}
    hashed = wire.ask("hash", path=found["part"], spans=[[0, len(data)], [step, step]])
    answers = [wire.hear() for _ in range(len(puts) + 1)]
    assert [heard.id for heard in answers if heard.id != hashed] == sorted(puts)  # puts in the order of their coming
    by_id = {heard.id: heard for heard in answers}
    assert by_id[hashed].fields["digests"] == [digest(data), digest(data[step : 2 * step])]


def test_a_hash_sees_every_put_before_it(wire: Wire) -> None:
    found = opened(wire, MIB)
    expected = {}
    for number in range(40):
        data = os.urandom(4096)
        wire.ask("put", data, part=found["part"], at=4096 * number)
        expected[wire.ask("hash", path=found["part"], spans=[[4096 * number, 4096]])] = digest(data)
    answers = [wire.hear() for _ in range(80)]
    hashes = [heard for heard in answers if heard.id in expected]
    assert [heard.id for heard in hashes] == list(expected)
    assert [heard.fields["digests"] for heard in hashes] == [[sha] for sha in expected.values()]


def test_disk_operations_are_done_in_order(wire: Wire) -> None:
    found = opened(wire, 10)
    numbers = [wire.ask("trim", part=found["part"], size=size) for size in (3, 8, 5)]
    numbers.append(wire.ask("locate", destination="file", name="file", key="0123456789ab"))
    answers = [wire.hear() for _ in numbers]
    assert [heard.id for heard in answers] == numbers
    assert answers[-1].fields["part_size"] == 5


def test_what_takes_long_holds_nothing_else_up(wire: Wire) -> None:
    slow = wire.ask("run", argv=["sleep", "30"], timeout=20)
    assert wire.call("hello").id != slow
    found = opened(wire, 10)
    assert "error" not in wire.call("put", b"0123456789", part=found["part"], at=0).fields


def test_a_put_goes_where_it_says_even_beyond_the_end(wire: Wire) -> None:
    found = opened(wire, 10)
    assert "error" not in wire.call("put", b"beyond", part=found["part"], at=20).fields
    assert Path(found["part"]).read_bytes() == bytes(20) + b"beyond"
    # It cannot pass for the file that was to be: its size is another.
    refused = wire.call("commit", part=found["part"], journal=found["journal"], target=found["target"], size=10,
                        ino=found["ino"], mode=0o600, mtime_ns=0, check=[])  # fmt: skip
    assert refused.errno == "ESTALE"
    assert not Path(found["target"]).exists()


def test_a_repeat_does_no_harm(wire: Wire) -> None:
    found = opened(wire, 6)
    for _ in range(3):
        wire.call("put", b"abc", part=found["part"], at=3)
        again = wire.call("open", part=found["part"], journal=found["journal"], note={}, size=6, need=0)
        assert again.fields["ino"] == found["ino"]
    assert Path(found["part"]).read_bytes() == b"\0\0\0abc"


def test_a_put_that_is_cut_off_has_written_what_came(wire: Wire) -> None:
    found = opened(wire, MIB)
    data = os.urandom(MIB)
    wire.give(frame({"op": "put", "id": 9, "part": found["part"], "at": 0}, data)[: -MIB // 2])
    _, _, status = wire.rest()
    assert status == 0
    written = Path(found["part"]).read_bytes()
    assert len(written) == MIB
    assert written[: MIB // 2] == data[: MIB // 2]
    assert written[MIB // 2 :] == bytes(MIB // 2)


def test_the_body_of_a_refused_put_is_read_past(wire: Wire) -> None:
    number = wire.ask("put", os.urandom(3 * MIB), part="/nowhere/.x.rrmove-part", at=0)
    heard = wire.hear()
    assert (heard.id, heard.errno) == (number, "ENOENT")
    assert wire.call("hello", b"still in step").body == b"still in step"


# What is wrong


@pytest.mark.parametrize(
    "mangled",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HEADER.pack(b"RRM0", 2, 0) + b"{}",
        HEADER.pack(b"RRM1", 5, 0) + b"nojson"[:5],
        HEADER.pack(b"RRM1", 2, 0) + b"{}",
        HEADER.pack(b"RRM1", 2, 0) + b"\xff\xfe",
        HEADER.pack(b"RRM1", 4, 0) + b"null",
    ],
)
def test_a_mangled_stream_is_the_end(wire: Wire, mangled: bytes) -> None:
    found = opened(wire, 4)
    wire.call("put", b"good", part=found["part"], at=0)
    wire.give(mangled + frame({"op": "put", "id": 3, "part": found["part"], "at": 0}, b"bad!"))
    out, words, status = wire.rest()
    assert (out, status) == (b"", 0)
    assert words.startswith("the agent ends: ")  # ssh brings it to whoever asks why
    assert words.count("\n") == 1
    assert Path(found["part"]).read_bytes() == b"good"


def test_an_operation_that_nobody_knows(wire: Wire) -> None:
    heard = wire.call("levitate", b"with a body", height=3)
    assert heard.errno == "ENOSYS"
    assert "levitate" in heard.fields["error"]["text"]
    assert wire.call("hello").fields["pid"]


def test_wrong_arguments_are_answered(wire: Wire) -> None:
    assert wire.call("locate", nonsense=1).errno == "EPROTO"
    part = opened(wire, 1)["part"]
    assert wire.call("hash", path=part, spans=7).errno == "EPROTO"
    assert wire.call("get", path=part, at="x", length=1).errno == "EPROTO"
    assert wire.call("hello").fields["pid"]


Wrong = Callable[[Path], tuple[str, dict[str, Any]]]
ERRORS: dict[str, tuple[str, Wrong]] = {
    "no such part": ("ENOENT", lambda _: ("trim", {"part": "/nowhere/.x.rrmove-part", "size": 1})),
    "no such file": ("ENOENT", lambda home: ("get", {"path": f"{home}/none", "at": 0, "length": 1})),
    "a directory": ("EISDIR", lambda home: ("get", {"path": str(home), "at": 0, "length": 1})),
    "a file on the way": ("ENOTDIR", lambda home: ("locate", {"destination": f"{home}/f/x/", "name": "n", "key": "k"})),
    "a loop": ("ELOOP", lambda home: ("locate", {"destination": f"{home}/loop/x", "name": "n", "key": "k"})),
    "too long": ("ENAMETOOLONG", lambda _: ("locate", {"destination": "x" * 300, "name": "n", "key": "k"})),
    "no program": ("ENOENT", lambda _: ("run", {"argv": ["/no/such/program"], "timeout": 1})),
    "no disk like that": (
        "ENOSPC",
        lambda home: (
            "open",
            {"part": f"{home}/.rrmove-part", "journal": f"{home}/.j", "note": {}, "size": 1, "need": 1 << 60},
        ),
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_have_their_errno(wire: Wire, name: str) -> None:
    (wire.home / "f").write_bytes(b"")
    (wire.home / "loop").symlink_to("loop")
    expected, wrong = ERRORS[name]
    op, arguments = wrong(wire.home)
    heard = wire.call(op, **arguments)
    assert heard.errno == expected
    assert heard.fields["error"]["text"]
    assert {path.name for path in wire.home.iterdir()} == {"f", "loop"}
    assert wire.call("hello").fields["pid"]


def test_no_space_says_how_much(wire: Wire) -> None:
    part = f"{wire.home}/sub/.p.rrmove-part"
    heard = wire.call("open", part=part, journal=f"{wire.home}/j", note={}, size=1, need=1 << 60)
    assert heard.fields["error"]["need"] == 1 << 60
    assert 0 <= heard.fields["error"]["free"] < 1 << 60
    assert not Path(part).exists()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 100), st.binary(max_size=60)), max_size=12))
def test_puts_are_what_pwrite_does(wire: Wire, puts: list[tuple[int, bytes]]) -> None:
    found = opened(wire, 120)
    expected = bytearray(120)
    wire.call("trim", part=found["part"], size=0)
    wire.call("trim", part=found["part"], size=120)
    for at, data in puts:
        wire.ask("put", data, part=found["part"], at=at)
        expected[at : at + len(data)] = data
    assert all("error" not in wire.hear().fields for _ in puts)
    assert Path(found["part"]).read_bytes() == expected


# Beats


def test_it_beats_while_it_is_busy_and_is_silent_otherwise(wire: Wire) -> None:
    wire.call("run", argv=["sleep", "1.6"], timeout=10)
    assert wire.beats >= 1
    wire.call("hello")
    beats = wire.beats
    time.sleep(1.3)  # a beat that was due may still come, and then no more
    wire.call("hello")
    assert wire.beats <= beats + 1


# Programs


def test_run_gives_what_the_program_said(wire: Wire) -> None:
    heard = wire.call("run", b"to its stdin", argv=["sh", "-c", "cat; echo no >&2; exit 3"], timeout=10)
    assert heard.body == b"to its stdin"
    assert heard.fields["status"] == 3
    assert heard.fields["errors"] == "no\n"


def test_what_it_runs_is_not_taken_for_an_agent(wire: Wire) -> None:
    assert wire.call("run", argv=["env"], timeout=10).body.count(b"RRMOVE_AGENT") == 0
    assert wire.call("probe", asks={"e": "env"}).fields["outputs"]["e"].count("RRMOVE_AGENT") == 0
    # The agent itself can be told by it all its life.
    assert b"RRMOVE_AGENT=1" in Path(f"/proc/{wire.process.pid}/environ").read_bytes().split(b"\0")


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(wire: Wire) -> None:
    pids = wire.home / "pids"
    program = f"sleep 60 & echo $! $$ > {pids}.new; mv {pids}.new {pids}; wait"
    heard = wire.call("run", argv=["sh", "-c", program], timeout=0.5)
    assert heard.errno == "ETIMEDOUT"
    for pid in pids.read_text().split():
        assert until(lambda pid=pid: not alive(int(pid)))  # type: ignore[misc]


def test_a_program_that_leaves_its_group_does_not_hold_up_the_answer(wire: Wire) -> None:
    pids = wire.home / "pids"
    program = "import os, sys, time\nif os.fork(): time.sleep(60)\nos.setsid()\n"
    program += "with open(sys.argv[1], 'w') as file: file.write(str(os.getpid()))\ntime.sleep(60)"
    begun = time.monotonic()
    heard = wire.call("run", argv=[sys.executable, "-S", "-c", program, str(pids)], timeout=1.0)
    assert heard.errno == "ETIMEDOUT"
    assert time.monotonic() - begun < 15
    os.kill(int(pids.read_text()), signal.SIGKILL)


def test_a_probe_that_hangs_is_answered_without(wire: Wire) -> None:
    begun = time.monotonic()
    stray = wire.home / "stray"
    heard = wire.call(
        "probe",
        asks={
            "quick": "echo here",
            "hangs": "echo first; sleep 60",
            "strays": f"setsid sh -c 'echo $$ > {stray}; sleep 60' & echo away",
            "floods": "yes",
            "fails": "exit 7",
            "bytes": "printf '\\377'",
        },
    )
    assert time.monotonic() - begun < 15
    outputs = heard.fields["outputs"]
    assert outputs["quick"] == "here\n"
    assert outputs["fails"] == ""
    assert os.fsencode(outputs["bytes"]) == b"\xff"
    assert len(outputs["floods"]) == 64 << 10
    assert outputs.get("hangs", "first\n") == "first\n"
    os.kill(int(stray.read_text()), signal.SIGKILL)
    assert wire.call("hello").fields["pid"]


@pytest.mark.parametrize("state", ["open", "refused"])
def test_reach(wire: Wire, state: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if state == "open":
            listener.listen()
        heard = wire.call("reach", host="127.0.0.1", port=listener.getsockname()[1], timeout=5)
    assert heard.fields["state"] == state


def test_reach_of_no_host_at_all(wire: Wire) -> None:
    assert wire.call("reach", host="no-such-host.invalid", port=1, timeout=5).fields["state"] == "unreachable"


# Ends


def test_it_goes_with_its_connection(wire: Wire) -> None:
    child = wire.ask("run", argv=["sleep", "0.1"], timeout=5)
    assert wire.hear().id == child
    assert wire.process.stdin is not None
    wire.process.stdin.close()
    assert wire.process.wait(10) == 0


def test_it_goes_when_nobody_listens(wire: Wire) -> None:
    assert wire.process.stdout is not None
    wire.process.stdout.close()
    wire.ask("hello")
    assert wire.process.wait(10) is not None


def test_a_committed_file_is_let_go(wire: Wire) -> None:
    # Kept open for writing, a program could not be executed ("Text file busy").
    script = b"#!/bin/sh\necho runs\n"
    found = opened(wire, len(script))
    wire.call("put", script, part=found["part"], at=0)
    wire.call("hash", path=found["part"], spans=[[0, len(script)]])
    done = wire.call("commit", part=found["part"], journal=found["journal"], target=found["target"], size=len(script),
                     ino=found["ino"], mode=0o700, mtime_ns=0, check=[[0, len(script), digest(script)]])  # fmt: skip
    assert "error" not in done.fields
    assert subprocess.run([found["target"]], capture_output=True, check=True).stdout == b"runs\n"
    held = {str(fd.readlink()) for fd in Path(f"/proc/{wire.process.pid}/fd").iterdir()}
    assert found["target"] not in held


def test_commit_checks_what_it_is_told_to(wire: Wire) -> None:
    found = opened(wire, 4)
    wire.call("put", b"good", part=found["part"], at=0)
    commit: dict[str, Any] = {key: found[key] for key in ("part", "journal", "target", "ino")}
    commit |= {"size": 4, "mode": 0o644, "mtime_ns": 0}
    wrong = wire.call("commit", **commit, check=[[0, 2, digest(b"go")], [2, 2, digest(b"xx")]])
    assert wrong.errno == "EBADMSG"
    assert wrong.fields["error"]["wrong"] == [2]
    assert not Path(found["target"]).exists()
    Path(found["target"]).mkdir()
    assert wire.call("commit", **commit, check=[]).errno == "EISDIR"
    assert Path(found["part"]).read_bytes() == b"good"
    Path(found["target"]).rmdir()
    assert "error" not in wire.call("commit", **commit, check=[[0, 4, digest(b"good")]]).fields
    assert Path(found["target"]).read_bytes() == b"good"
    assert not Path(found["journal"]).exists()
