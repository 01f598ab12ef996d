"""Reading: listings, ranges, conditions, digests, and files that change while they are sent."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rrmove.serving.digests import SETTLED

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serving.served import Served

SIZE = 5_000_011
NAME = b"mod\xe4l %41?#.pth"  # no UTF-8, and all that has to be quoted
QUOTED = "mod%E4l%20%2541%3F%23.pth"


@pytest.fixture(scope="module")
def data(both: Served) -> bytes:
    data = os.urandom(SIZE)
    folder = both.data / "deep" / "er"
    folder.mkdir(parents=True)
    with open(os.fsencode(folder) + b"/" + NAME, "wb") as file:  # noqa: PTH123 - bytes
        file.write(data)
    (folder / "empty").touch()
    (folder / "below").mkdir()
    (folder / "link").symlink_to("empty")
    os.mkfifo(folder / "fifo")
    (folder / ".a.0123456789ab.rrmove-part").write_bytes(b"half")
    (folder / ".a.0123456789ab.rrmove-journal").write_bytes(b"{}")
    (folder / ".a.0123456789ab.rrmove-journal.01~").write_bytes(b"{}")
    time.sleep(SETTLED / 1e9 + 0.1)  # a tag is strong once no change could hide any more
    return data


def test_a_listing(both: Served, data: bytes) -> None:
    both.ask("GET", "/v1/files/data/deep/er/?digest=1")
    found = both.ask("GET", "/v1/files/data/deep/er/").json["entries"]
    kinds = {entry["name"]: (entry["kind"], entry["size"]) for entry in found}
    assert kinds == {
        "below": ("directory", None),
        "empty": ("file", 0),
        "fifo": ("other", None),
        "link": ("symlink", None),
        os.fsdecode(NAME): ("file", SIZE),
    }
    (entry,) = (entry for entry in found if entry["size"] == SIZE)
    assert entry["name_quoted"] == QUOTED
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert both.ask("GET", "/v1/files/data/").json["entries"][0]["name"] == "deep"


def test_what_is_no_file_is_not_sent(both: Served, data: bytes) -> None:
    assert data
    for name, status in {
        "below": 404,
        "link": 404,
        "fifo": 403,
        "none": 404,
        "empty/": 404,
        "link/": 404,
        ".a.0123456789ab.rrmove-part": 404,
        ".a.0123456789ab.rrmove-journal": 404,
        ".a.0123456789ab.rrmove-journal.01~": 404,
    }.items():
        answer = both.ask("GET", f"/v1/files/data/deep/er/{name}")
        assert answer.status == status, name
        assert answer.json["error"]["remedy"]


@pytest.mark.parametrize(
    ("header", "status", "start", "stop"),
    [
        (None, 200, 0, SIZE),
        ("bytes=0-0", 206, 0, 1),
        ("bytes=3-9", 206, 3, 10),
        ("bytes=1000000-", 206, 1_000_000, SIZE),
        ("bytes=-5", 206, SIZE - 5, SIZE),
        ("bytes=-99999999", 206, 0, SIZE),
        ("Bytes = 7 - 99999999", 206, 7, SIZE),
        (f"bytes={SIZE - 1}-{SIZE}", 206, SIZE - 1, SIZE),
        ("bytes=9-3", 200, 0, SIZE),
        ("bytes=1-2,4-5", 200, 0, SIZE),
        ("lines=1-2", 200, 0, SIZE),
        ("bytes=-", 200, 0, SIZE),
        ("bytes=" + "9" * 5000 + "-", 200, 0, SIZE),
        ("bytes=²-", 200, 0, SIZE),
    ],
)
def test_ranges(both: Served, data: bytes, header: str | None, status: int, start: int, stop: int) -> None:
    answer = both.ask("GET", f"/v1/files/data/deep/er/{QUOTED}", headers={"Range": header} if header else {})
    assert answer.status == status
    assert answer.body == data[start:stop]
    assert answer.headers["Accept-Ranges"] == "bytes"
    if status == 206:
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", "bytes=-0", "bytes=99999999-999999999"])
def test_a_range_outside(both: Served, data: bytes, header: str) -> None:
    assert data
    answer = both.ask("GET", f"/v1/files/data/deep/er/{QUOTED}", headers={"Range": header})
    assert answer.status == 416
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"


def test_an_empty_file(both: Served, data: bytes) -> None:
    assert data
    assert both.ask("GET", "/v1/files/data/deep/er/empty").body == b""
    assert both.ask("GET", "/v1/files/data/deep/er/empty", headers={"Range": "bytes=0-"}).status == 416


def test_conditions(both: Served, data: bytes) -> None:
    path = f"/v1/files/data/deep/er/{QUOTED}"
    head = both.ask("HEAD", path)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(SIZE))
    tag, date = head.headers["ETag"], head.headers["Last-Modified"]
    assert tag.startswith('"')

    def status(**headers: str) -> tuple[int, int]:
        answer = both.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return answer.status, len(answer.body)

    assert status(If_None_Match=tag) == (304, 0)
    assert status(If_None_Match=f'"other", W/{tag}') == (304, 0)
    assert status(If_None_Match='"other"') == (200, SIZE)
    assert status(If_Modified_Since=date) == (304, 0)
    assert status(If_Modified_Since=date, If_None_Match='"other"') == (200, SIZE)
    assert status(If_Match=tag) == (200, SIZE)
    assert status(If_Match="*") == (200, SIZE)
    assert status(If_Match='"other"')[0] == 412
    assert status(If_Match=f"W/{tag}")[0] == 412
    assert status(If_Unmodified_Since=date) == (200, SIZE)
    assert status(If_Unmodified_Since="Mon, 01 Jan 2001 00:00:00 GMT")[0] == 412
    assert status(Range="bytes=0-9", If_Range=tag) == (206, 10)
    assert status(Range="bytes=0-9", If_Range='"other"') == (200, SIZE)
    assert status(Range="bytes=0-9", If_Range=f"W/{tag}") == (200, SIZE)
    assert status(Range="bytes=0-9", If_Range=date) == (200, SIZE), "a date proves nothing: anyone may set it"
    assert both.ask("HEAD", path, headers={"Range": "bytes=0-9"}).status == 200
    assert data


def test_a_digest_when_it_is_wanted(served: Served) -> None:
    data = os.urandom(300_000)
    (served.data / "wanted").write_bytes(data)
    assert "Repr-Digest" not in served.ask("HEAD", "/v1/files/data/wanted").headers
    for refused in ("sha-256=0", "sha-512=5", "garbage"):
        answer = served.ask("GET", "/v1/files/data/wanted", headers={"Want-Repr-Digest": refused})
        assert "Repr-Digest" not in answer.headers
    answer = served.ask("GET", "/v1/files/data/wanted", headers={"Want-Repr-Digest": "sha-512=3, sha-256=10"})
    expected = base64.b64encode(hashlib.sha256(data).digest()).decode()
    assert answer.headers["Repr-Digest"] == f"sha-256=:{expected}:"


def test_no_digest_and_no_tag_outlives_a_change(served: Served) -> None:
    path = served.data / "changing"
    want = {"Want-Repr-Digest": "sha-256=1"}
    seen = set()
    for turn in range(20):
        data = bytes([turn]) * 4096
        path.write_bytes(data)
        os.utime(path, ns=(10**18, 10**18))  # as who restores times does
        answer = served.ask("GET", "/v1/files/data/changing", headers=want)
        assert answer.headers["Repr-Digest"].split(":")[1] == base64.b64encode(hashlib.sha256(data).digest()).decode()
        tag = answer.headers["ETag"]
        assert tag.startswith("W/") or tag not in seen, "a strong tag names two contents"
        seen.add(tag)


@pytest.mark.parametrize("fate", ["rewritten", "cut"])
def test_a_file_that_changes_while_it_is_sent_is_never_a_whole_one(both: Served, fate: str) -> None:
    path: Path = both.data / f"fickle-{fate}"
    size = 64_000_000  # more than the kernel holds for a connection
    path.write_bytes(bytes(size))
    connection = both.connection()
    connection.request("GET", f"/v1/files/data/{path.name}", headers=both.authorization)
    response = connection.getresponse()
    assert response.status == 200
    begun = len(response.read(100_000))
    with path.open("r+b") as file:
        if fate == "cut":
            file.truncate(1_000_000)
        else:
            file.seek(size - 1_000_000)
            file.write(b"x")
    got = begun
    with contextlib.suppress(http.client.IncompleteRead, OSError):
        while block := response.read1(1_000_000):
            got += len(block)
    assert got < size
    connection.close()
    path.unlink()


def test_a_file_that_is_replaced_while_it_is_sent_is_the_old_one(served: Served) -> None:
    size = 30_000_000
    (served.data / "old").write_bytes(bytes(size))
    connection = served.connection()
    connection.request("GET", "/v1/files/data/old", headers=served.authorization)
    response = connection.getresponse()
    (served.data / "new").write_bytes(b"x" * size)
    (served.data / "new").rename(served.data / "old")
    assert response.read() == bytes(size)
    connection.close()
    assert served.ask("GET", "/v1/files/data/old").body == b"x" * size


def test_reading_at_once(both: Served) -> None:
    data = os.urandom(2_000_003)
    (both.data / "shared").write_bytes(data)
    wrong: list[str] = []

    def one(number: int) -> None:
        start = number * 31_001
        answer = both.ask("GET", "/v1/files/data/shared", headers={"Range": f"bytes={start}-{start + 99_999}"})
        if answer.body != data[start : start + 100_000]:
            wrong.append(f"{number}: {answer.status}")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
