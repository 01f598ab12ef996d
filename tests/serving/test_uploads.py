"""Writing: what lands is whole and verified; whatever breaks, a repeat goes on, and nobody sees half a file."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from rrmove.ssh import agent
from rrmove.testing import EmbeddedNode, Faults
from tests.serving.served import GRAIN, Served, digests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 9_000_001


@pytest.fixture
def data() -> bytes:
    return os.urandom(SIZE)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def until(condition: object, timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def test_a_whole_upload(both: Served, data: bytes) -> None:
    target = both.data / "made" / "on the way" / "model.pth"
    begun = both.begin(data, "made/on the way/model.pth", mode=0o640, mtime_ns=1_700_000_000_123_456_789)
    assert (begun.status, begun.json["state"], begun.json["missing"]) == (201, "open", [[0, SIZE]])
    part = both.data / begun.json["part"]
    assert part.stat().st_size == SIZE
    both.send_missing(begun.json, data)
    assert not target.exists(), "nothing has its name before it is committed"
    done = both.commit(begun.json)
    assert (done.status, done.json["state"], done.json["missing"]) == (200, "committed", [])
    assert target.read_bytes() == data
    seen = target.stat()
    assert (stat.S_IMODE(seen.st_mode), seen.st_mtime_ns) == (0o640, 1_700_000_000_123_456_789)
    assert leftovers(target.parent) == []
    assert both.commit(begun.json).json["state"] == "committed", (
        "the answer may have been lost: a repeat gives it again"
    )
    again = both.begin(data, "made/on the way/model.pth")
    assert (again.status, again.json["state"]) == (200, "committed")
    assert leftovers(target.parent) == []


def test_an_empty_file(served: Served) -> None:
    assert served.upload(b"", "empty").status == 200
    assert (served.data / "empty").read_bytes() == b""


def test_holes_need_not_be_sent(served: Served) -> None:
    data = bytes(3 * GRAIN) + os.urandom(100)
    begun = served.begin(data, "sparse")
    assert begun.json["missing"] == [[3 * GRAIN, len(data)]]
    served.send_missing(begun.json, data)
    assert served.commit(begun.json).status == 200
    assert (served.data / "sparse").read_bytes() == data


def test_what_is_not_there_is_not_committed(served: Served, data: bytes) -> None:
    begun = served.begin(data, "partly").json
    assert served.put(begun, data, 0, 5_000_000).status == 200
    refused = served.commit(begun)
    assert refused.status == 409
    assert refused.json["missing"] == [[2 * GRAIN, SIZE]]
    assert not (served.data / "partly").exists()
    survey = served.ask("POST", f"/v1/uploads/{begun['id']}/survey").json
    assert survey["missing"] == [[2 * GRAIN, SIZE]]
    assert served.send_missing(survey, data) == SIZE - 2 * GRAIN
    assert served.commit(begun).status == 200
    assert (served.data / "partly").read_bytes() == data


def test_wrong_bytes_are_found_and_sent_again(served: Served, data: bytes) -> None:
    begun = served.begin(data, "mangled").json
    served.send_missing(begun, data)
    with (served.data / begun["part"]).open("r+b") as part:  # behind the server's back
        part.seek(GRAIN + 5)
        part.write(bytes([data[GRAIN + 5] ^ 1]))
    refused = served.commit(begun)
    assert (refused.status, refused.json["missing"]) == (409, [[GRAIN, 2 * GRAIN]])
    assert not (served.data / "mangled").exists()
    served.send_missing(refused.json | {"put": begun["put"]}, data)
    assert served.commit(begun).status == 200
    assert (served.data / "mangled").read_bytes() == data


def test_an_old_file_stands_until_the_new_one_is_whole(served: Served, data: bytes) -> None:
    target = served.data / "standing"
    target.write_bytes(b"old")
    begun = served.begin(data, "standing").json
    served.put(begun, data, 0, 1000)
    assert served.commit(begun).status == 409
    assert target.read_bytes() == b"old"
    assert served.ask("GET", "/v1/files/data/standing").body == b"old"
    served.send_missing(begun, data)
    assert served.commit(begun).status == 200
    assert served.ask("GET", "/v1/files/data/standing").body == data


def test_a_digest_of_a_piece(served: Served, data: bytes) -> None:
    begun = served.begin(data, "pieces").json
    right = base64.b64encode(hashlib.sha256(data[:1000]).digest()).decode()
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    assert served.put(begun, data, 0, 1000, **{"Content-Digest": f"sha-256=:{right}:"}).status == 200
    assert served.put(begun, data, 0, 1000, **{"Content-Digest": f"sha-256=:{wrong}:"}).status == 422
    assert served.put(begun, data, 0, 1000, **{"Content-Digest": "sha-256=:abc:"}).status == 400


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("", 400),
        ("bytes 0-9", 400),
        ("bytes 9-0/9000001", 400),
        ("bytes 0-9000001/9000001", 400),
        ("bytes 0-10/9000001", 400),  # the body has 10 bytes
        ("bytes 0-9/9000002", 409),
        ("bytes 0-9/*", 400),
        ("bytes ²-9/9000001", 400),
        ("bytes 0-" + "9" * 5000 + "/9000001", 400),
    ],
)
def test_odd_ranges(served: Served, data: bytes, header: str, status: int) -> None:
    begun = served.begin(b"\1" * SIZE, "odd").json
    head = {"Content-Range": header.encode("utf-8").decode("latin-1")} if header else {}
    answer = served.ask("PUT", begun["put"], body=data[:10], headers=head)
    assert answer.status == status, answer.body
    assert answer.json["error"]["remedy"]


def test_a_put_goes_into_part_files_only(served: Served, data: bytes) -> None:
    (served.data / "victim").write_bytes(b"v" * 100)
    (served.data / ".linked.0123456789ab.rrmove-part").symlink_to("victim")
    os.link(served.data / "victim", served.data / ".hard.0123456789ab.rrmove-part")
    os.mkfifo(served.data / ".fifo.0123456789ab.rrmove-part")
    expected = {"victim": 404, ".linked.0123456789ab.rrmove-part": 404, ".none.0123456789ab.rrmove-part": 404,
                ".hard.0123456789ab.rrmove-part": 409, ".fifo.0123456789ab.rrmove-part": 403}  # fmt: skip
    for name, status in expected.items():
        answer = served.put({"put": f"/v1/parts/data/{name}"}, data[:100], 0, 100)
        assert answer.status == status, (name, answer.body)
    assert (served.data / "victim").read_bytes() == b"v" * 100
    for name in expected:
        (served.data / name).unlink(missing_ok=True)


def test_a_part_that_was_opened_over_ssh(served: Served, data: bytes) -> None:
    """What `rrmove auto` opens by way of its agent can be filled here, and nothing is asked of POST."""
    part, journal = (f"{served.data}/.over ssh.0123456789ab.rrmove-{kind}" for kind in ("part", "journal"))
    ino = agent.open_part(None, part, journal, {}, SIZE, SIZE)["ino"]
    put = {"put": "/v1/parts/data/.over%20ssh.0123456789ab.rrmove-part"}
    assert served.put(put, data, 0, 5_000_000).status == 409  # nobody has let servers in
    agent.admit(SimpleNamespace(disk=agent.Disk()), part, journal, ino)
    assert served.put(put, data, 5_000_000, SIZE).json == {"start": 5_000_000, "stop": SIZE}
    assert served.put(put, data, 0, 5_000_000).status == 200
    with open(part, "rb") as file:  # noqa: PTH123
        assert file.read() == data
    os.unlink(part)  # noqa: PTH108
    os.unlink(journal)  # noqa: PTH108


def test_targets_that_cannot_be(served: Served, data: bytes) -> None:
    (served.data / "folder").mkdir()
    (served.data / "link").symlink_to("folder")
    assert served.begin(data, "folder").status == 409
    assert served.begin(data, "link").status == 409
    assert served.begin(data, "link/inside").status == 404
    for path in ("", "/", "/etc/x", "a//b", "../x", "a/../b", "a/.", "a\0b", ".x.0123456789ab.rrmove-part", "x" * 256):
        assert served.begin(data, path).status == 400, path
    assert leftovers(served.data / "folder") == []


def test_what_post_is_given(served: Served) -> None:
    good = {"root": "data", "path": "given", "size": 5, "digests": digests(b"12345")}
    for wrong in (
        {"size": -1}, {"size": "5"}, {"size": True}, {"size": 5.0}, {"size": 2**61}, {"digests": "00"}, {"digests": ""},
        {"digests": "zz" * 32}, {"digests": 5}, {"digests": " " + digests(b"12345")}, {"grain": 1}, {"mode": 0o4755},
        {"mtime_ns": -1}, {"mtime_ns": 2**64}, {"other": 1}, {"path": 5}, {"path": "\ud800"}, {"root": None},
    ):  # fmt: skip
        answer = served.ask("POST", "/v1/uploads", body={**good, **wrong})
        assert answer.status == 400, (wrong, answer.body)
    assert served.ask("POST", "/v1/uploads", body={**good, "root": "none"}).status == 404
    for body in (b"", b"[]", b"{", b"\xff", b"[" * 100_000):
        assert served.ask("POST", "/v1/uploads", body=body).status == 400, body[:10]
    assert not (served.data / "given").exists()


def test_a_zombie_cannot_write_into_what_was_committed(both: Served, data: bytes) -> None:
    """A PUT whose client is thought dead still has bytes to come, and they are other ones."""
    begun = both.begin(data, "undead").json
    false = bytes(4_000_000)
    zombie = both.half_put(begun, false + data[4_000_000:], 0, 4_000_000, 1_500_000)
    both.send_missing(begun, data)
    assert both.commit(begun).status == 200
    with contextlib.suppress(OSError):
        zombie.sendall(false[1_500_000:])
    zombie.settimeout(10)
    try:
        said = zombie.recv(4096)
    except OSError:
        said = b""
    assert not said.startswith(b"HTTP/1.1 2")
    assert (both.data / "undead").read_bytes() == data
    zombie.close()


def test_a_zombie_is_superseded_by_whoever_sends_the_same_range(served: Served, data: bytes) -> None:
    begun = served.begin(data, "twice").json
    zombie = served.half_put(begun, data, 0, 4_000_000, 10)
    other = served.half_put(begun, data, 4_000_000, 8_000_000, 10)
    time.sleep(0.2)
    assert served.put(begun, data, 1_000_000, 2_000_000).status == 200
    for sock, status in ((zombie, b"409"), (other, b"200")):
        start = 0 if sock is zombie else 4_000_000
        with contextlib.suppress(OSError):
            sock.sendall(data[start + 10 : start + 4_000_000])
        assert sock.recv(65536).split()[1] == status
        sock.close()


def test_writers_that_work_at_once(served: Served) -> None:
    """Many uploads and many pieces of one, all at the same time."""
    files = {f"crowd/{number}": os.urandom(GRAIN + number) for number in range(32)}
    large = os.urandom(16 * GRAIN)
    begun = served.begin(large, "crowd/large").json
    answers: dict[str, int] = {}

    def small(path: str) -> None:
        answers[path] = served.upload(files[path], path).status

    def piece(index: int) -> None:
        answers[str(index)] = served.put(begun, large, index * GRAIN // 2, (index + 1) * GRAIN // 2).status

    threads = [threading.Thread(target=small, args=(path,)) for path in files]
    threads += [threading.Thread(target=piece, args=(index,)) for index in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers.values()) == {200}
    assert len(answers) == 64
    assert served.commit(begun).status == 200
    assert (served.data / "crowd/large").read_bytes() == large
    assert all((served.data / path).read_bytes() == content for path, content in files.items())
    assert leftovers(served.data / "crowd") == []


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "tls"])
def test_kill_9_in_the_middle_of_everything(tmp_path: Path, plain: bool) -> None:  # noqa: FBT001 - a parameter
    """Killed with PUTs, and an upload of each kind, under way: nothing is lost, and nothing half is seen."""
    data = os.urandom(20 * GRAIN)
    with Served(tmp_path, plain=plain) as served:
        begun = served.begin(data, "model.pth").json
        served.put(begun, data, 0, 4 * GRAIN)
        zombies = [
            served.half_put(begun, data, (4 + 4 * i) * GRAIN, (8 + 4 * i) * GRAIN, 2 * GRAIN + 1000) for i in range(4)
        ]
        part = served.data / begun["part"]
        until(lambda: part.stat().st_blocks * 512 >= 12 * GRAIN)
        port, token = served.port, served.token
        served.kill()
        assert served.data.joinpath("model.pth").exists() is False
        assert (served.state / f"serve-{port}.json").exists(), "a crash leaves it: it has to be tolerated"
    for zombie in zombies:
        zombie.close()
    with Served(tmp_path, plain=plain, port=port) as served:
        assert served.token == token
        assert served.ask("POST", f"/v1/uploads/{begun['id']}/commit").status == 404
        again = served.begin(data, "model.pth")
        assert again.status == 200
        assert again.json["id"] == begun["id"]
        sent = served.send_missing(again.json, data)
        assert sent <= 8 * GRAIN, "what had arrived is not sent again"
        assert sent > 0
        assert served.commit(again.json).status == 200
        assert (served.data / "model.pth").read_bytes() == data
        assert leftovers(served.data) == []


def test_kill_9_while_it_commits(tmp_path: Path) -> None:
    """Whatever the moment: the target is the old file or the new one, and a repeat ends with the new one."""
    for turn in range(3):
        data = os.urandom(12 * GRAIN)
        target = tmp_path / "data" / "model.pth"
        with Served(tmp_path) as served:
            target.write_bytes(b"old")
            begun = served.begin(data, "model.pth").json
            served.send_missing(begun, data)
            killer = threading.Timer(0.008 * turn, served.process.send_signal, (signal.SIGKILL,))
            killer.start()
            with contextlib.suppress(OSError, Exception):
                served.commit(begun)
            killer.join()
            served.process.wait()
            assert target.read_bytes() in (b"old", data)
        with Served(tmp_path) as served:
            assert served.upload(data, "model.pth").json["state"] == "committed"
            assert target.read_bytes() == data
            assert leftovers(served.data) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_a_full_disk(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "data").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", tmp_path / "data"], check=True)
    try:
        with Served(tmp_path) as served:
            refused = served.begin(os.urandom(20_000_000), "large")
            assert refused.status == 507
            assert refused.json["need"] == 20_000_000
            assert 0 < refused.json["free"] <= 12 << 20
            assert leftovers(served.data) == []
            begun = served.begin(data, "model.pth").json
            (served.data / "ballast").write_bytes(bytes(6_000_000))  # somebody else is quicker
            full = served.put(begun, data, 0, SIZE)
            assert full.status == 507
            assert "o space left" in full.what
            assert not (served.data / "model.pth").exists()
            (served.data / "ballast").unlink()
            again = served.begin(data, "model.pth").json
            assert served.send_missing(again, data) < SIZE, "what had arrived is kept"
            assert served.commit(again).status == 200
            assert (served.data / "model.pth").read_bytes() == data
    finally:
        subprocess.run(["umount", "-l", tmp_path / "data"], check=True)


def test_giving_up(served: Served, data: bytes) -> None:
    begun = served.begin(data, "given-up").json
    served.put(begun, data, 0, 1000)
    assert served.ask("DELETE", f"/v1/uploads/{begun['id']}").status == 204
    assert served.ask("GET", f"/v1/uploads/{begun['id']}").status == 404
    assert served.put(begun, data, 0, 1000).status == 404
    assert [name for name in leftovers(served.data) if "given-up" in name] == []


def test_a_part_that_vanishes_is_begun_again(served: Served, data: bytes) -> None:
    begun = served.begin(data, "vanishing").json
    served.send_missing(begun, data)
    (served.data / begun["part"]).unlink()
    assert served.commit(begun).status == 404
    assert not (served.data / "vanishing").exists()
    again = served.begin(data, "vanishing").json
    assert again["missing"] == [[0, SIZE]], "what was verified of another file does not count for this one"
    served.send_missing(again, data)
    assert served.commit(again).status == 200


def test_roots_that_are_for_one_thing_only(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "there").write_bytes(b"x")
    with Served(tmp_path, roots=(f"in={tmp_path / 'in'}:w", f"out={tmp_path / 'out'}")) as served:
        told = served.ask("GET", "/v1/roots").json
        assert told == served.told["roots"]
        assert told == [
            {"name": "in", "path": str(tmp_path / "in"), "access": "w"},
            {"name": "out", "path": str(tmp_path / "out"), "access": "r"},
        ]
        assert served.ask("GET", "/v1/files/in/there").status == 403
        assert served.ask("GET", "/v1/files/in/").status == 403
        assert served.ask("GET", "/v1/files/out/there").status == 200
        assert served.begin(b"data", "new", root="out").status == 403
        begun = served.begin(b"data", "new", root="in").json
        assert served.put({"put": begun["put"].replace("/in/", "/out/")}, b"data", 0, 4).status == 403
        served.send_missing(begun, b"data")
        assert served.commit(begun).status == 200
        assert (tmp_path / "in" / "new").read_bytes() == b"data"
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["there"]


@pytest.fixture
def node() -> Iterator[EmbeddedNode]:
    with EmbeddedNode(Faults(), name="gpu-3") as node:
        yield node


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh program")
def test_what_http_began_ssh_finishes_and_the_server_lives(node: EmbeddedNode, tmp_path: Path) -> None:
    """One landing format, one part file; and a move that evicts foreign writers leaves the server alone."""
    data = os.urandom(10 * GRAIN)
    source = tmp_path / "model.pth"
    source.write_bytes(data)
    with Served(tmp_path) as served:
        begun = served.begin(data, "model.pth").json
        served.put(begun, data, 0, 6 * GRAIN)
        writing = served.half_put(begun, data, 6 * GRAIN, 8 * GRAIN, 1000)  # it has the part open right now
        until(lambda: any(begun["part"] in _names(served.process.pid) for _ in (1,)))
        argv = [
            sys.executable,
            "-m",
            "rrmove",
            "auto",
            str(source),
            f"gpu-3:{served.data}/model.pth",
            "--only",
            "chunked",
        ]
        environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "mover")}
        done = subprocess.run(
            [*argv, "--json", "-F", str(node.ssh_config)],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert '"bytes_reused": 0' not in done.stdout.splitlines()[-1]
        assert served.process.poll() is None, "the move took the server for a stranger, and ended it"
        assert (served.data / "model.pth").read_bytes() == data
        with contextlib.suppress(OSError):
            writing.sendall(b"x" * (2 * GRAIN - 1000))
        said = writing.recv(65536)
        assert said.split()[1] == b"409", said
        assert (served.data / "model.pth").read_bytes() == data, "a committed file was written to"
        writing.close()
        assert served.begin(data, "model.pth").json["state"] == "committed"
    assert leftovers(tmp_path / "data") == []


def _names(pid: int) -> str:
    found = []
    for link in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(link.path))  # noqa: PTH115
    return " ".join(found)
