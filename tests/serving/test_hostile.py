"""A campaign of hostile paths and headers: nothing outside the root is read or written, whatever is asked for."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rrmove.serving.answers import Rejection
from rrmove.serving.paths import segments_in, segments_of
from tests.serving.served import Served, digests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = b"THE-SECRET-OUTSIDE"
UP = [
    "..", "../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%2E%2E%2F", ".%2e/", "%2e./", "..;/", "..\\", "..%5c", "%252e%252e/",
    "..%252f", "%c0%ae%c0%ae/", "%c0%ae%c0%ae%c0%af", "..%c0%af", "%uff0e%uff0e/", "%e2%80%a5/", "..%00/", "..%0d%0a/",
    "....//", "..././", "./../", "/../", "//../", "%2f..%2f", "x/../../", "in/../../", "link/", "absolute/", "chain/",
    "in/link/", "dotlink/../", ".", "./", "%2e", "%00", "/", "//", "%2f", "%5c", "~", "~root/", "..%09/", "..%20/",
]  # fmt: skip
ENDS = ["outside/secret", "secret", "etc/passwd", "outside", "outside/", "", "proc/self/environ"]


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve a root that has a secret beside it, and links that lead there in all ways."""
    where = tmp_path_factory.mktemp("fort")
    (where / "outside").mkdir()
    (where / "outside" / "secret").write_bytes(SECRET)
    (where / "data").mkdir()
    data = where / "data"
    (data / "in").mkdir()
    (data / "in" / "file").write_bytes(b"inside")
    (data / "link").symlink_to("../outside")
    (data / "absolute").symlink_to(where / "outside")
    (data / "chain").symlink_to("link")
    (data / "in" / "link").symlink_to("../../outside")
    (data / "dotlink").symlink_to(".")
    (data / "secret").symlink_to("../outside/secret")
    (data / "proc").symlink_to("/proc/self/root")
    with Served(where) as served:
        yield served
    assert (where / "outside" / "secret").read_bytes() == SECRET
    assert [path.name for path in (where / "outside").iterdir()] == ["secret"]
    assert sorted(path.name for path in where.iterdir()) == ["data", "log", "outside", "state"]


def request(fort: Served, method: str, target: bytes, headers: bytes = b"", body: bytes = b"") -> bytes:
    head = method.encode() + b" " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    token = f"Authorization: Bearer {fort.token}\r\nContent-Length: {len(body)}\r\n".encode()
    return fort.raw(head + token + headers + b"\r\n" + body)


def status(answer: bytes) -> int:
    """Give the status of an answer; 0 where the connection was closed without one."""
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.") else 0


def refused(answer: bytes) -> bool:
    """Tell whether it was an answer, no success, and the secret is not in it."""
    return 400 <= status(answer) < 500 and SECRET not in answer and b"root:" not in answer


@pytest.mark.parametrize("place", ["/v1/files/data/", "/v1/files/", "/v1/files/data/in/"])
def test_the_list(fort: Served, place: str) -> None:
    said = 0
    for up in UP:
        for times in (1, 3):
            for end in ENDS:
                answer = request(fort, "GET", f"{place}{up * times}{end}".encode())
                assert SECRET not in answer
                assert b"root:" not in answer
                assert status(answer) == 200 or refused(answer), (up, end, answer[:80])
                if status(answer) == 200:  # a plain listing of the root: nothing was walked
                    assert b'"name": "in"' in answer or b'"name": "file"' in answer, (up, end, answer)
                said += 1
    assert said == len(UP) * 2 * len(ENDS)


def test_absolute_forms_and_other_targets(fort: Served) -> None:
    for target in (
        b"http://x/v1/files/data/../../outside/secret", b"http://x/v1/files/data/link/secret", b"file:///etc/passwd",
        b"http:///etc/passwd", b"*", b"", b"x", b"?", b"#", b"//etc/passwd", b"/v1/files/data/\xff",
        b"/v1/files/data/%",
        b"/v1/files/data/%zz", b"/v1/files/data/in/file#/../../x", b"http://x", b"/" + b"a/" * 5000,
        b"/v1/files/data/" + b"x" * 300,
    ):  # fmt: skip
        answer = request(fort, "GET", target)
        assert not answer or refused(answer) or b"inside" in answer, (target, answer[:100])


def test_methods(fort: Served) -> None:
    for method in ("CONNECT", "TRACE", "OPTIONS", "PATCH", "PROPFIND", "MOVE", "COPY", "DELETE", "POST", "PUT", "BREW"):
        answer = request(fort, method, b"/v1/files/data/in/file")
        assert not answer or refused(answer), (method, answer[:100])
    assert (fort.data / "in" / "file").read_bytes() == b"inside"


def test_uploads_stay_inside(fort: Served) -> None:
    for path in (
        "../outside/new", "link/new", "absolute/new", "chain/new", "in/link/new", "dotlink/new", "in/../../outside/new",
        "/tmp/new", "link", "secret", "..", "./new", "in//new", "proc/tmp/new", "new\0", "in/../new",
    ):  # fmt: skip
        answer = fort.ask(
            "POST", "/v1/uploads", body={"root": "data", "path": path, "size": 1, "digests": digests(b"x")}
        )
        assert answer.status in {400, 404, 409}, (path, answer.body)
    for up in UP:
        name = f"{up}.n.0123456789ab.rrmove-part"
        said = request(fort, "PUT", f"/v1/parts/data/{name}".encode(), b"Content-Range: bytes 0-0/1\r\n", b"x")
        assert refused(said), (name, said[:100])


HEADERS = [
    b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 1e3\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Host: a\r\nHost: b\r\n", b"Range: bytes=0-0\r\nRange: bytes=1-1\r\n", b"X: a\r\n b\r\n",
    b"X : y\r\n", b"\0: y\r\n",
    b"X: \0\r\n", b": y\r\n", b"X: y\n", b"X: \xff\xfe\r\n", b"X-Original-URL: /etc/passwd\r\n",
    b"X: " + b"y" * 70000 + b"\r\n",
    b"".join(b"X%d: y\r\n" % i for i in range(500)), b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    b"Expect: 200-maybe\r\n",
    b"If-None-Match: " + b'"' * 5000 + b"\r\n", b"If-Modified-Since: never\r\n",
    b"Range: bytes=" + b"0-1," * 1500 + b"\r\n",
    b"Authorization: Bearer x\r\n", b"Content-Encoding: gzip\r\n", b"Accept-Encoding: gzip, br, zstd, \xff\r\n",
]  # fmt: skip


def test_headers(fort: Served) -> None:
    for header in HEADERS:
        for method, target in (
            ("GET", b"/v1/files/data/in/file"),
            ("PUT", b"/v1/parts/data/x"),
            ("POST", b"/v1/uploads"),
        ):
            answer = request(fort, method, target, header)
            assert status(answer) < 500, (header[:60], answer[:200])
    assert fort.ask("GET", "/healthz").json["ok"]


SEGMENT = st.one_of(
    st.sampled_from([*UP, *ENDS, "in", "file", "link", "secret", "dotlink"]),
    st.binary(max_size=12).map(lambda raw: "".join(f"%{byte:02x}" for byte in raw)),
    st.text(max_size=12).map(lambda text: quote(text, safe="/.;~\\", errors="replace")),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(SEGMENT, max_size=8),
    st.sampled_from(["files/data", "files", "parts/data"]),
    st.sampled_from(["GET", "HEAD", "PUT"]),
)
def test_any_path(fort: Served, names: list[str], place: str, method: str) -> None:
    target = f"/v1/{place}/{'/'.join(names)}".encode()
    answer = request(fort, method, target, b"Content-Range: bytes 0-0/1\r\n", b"x" if method == "PUT" else b"")
    assert SECRET not in answer
    assert not answer or status(answer) == 200 or refused(answer), answer[:100]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes(fort: Served, noise: bytes) -> None:
    answer = fort.raw(b"GET /v1/files/data/in/file HTTP/1.1\r\n" + noise + b"\r\n\r\n", timeout=5)
    assert b"inside" not in answer, "there was no token"
    assert status(answer) < 500


@given(st.text())
def test_a_path_never_leads_upwards(text: str) -> None:
    for read in (segments_of, segments_in):
        try:
            names = read("/" + text if read is segments_of else text)
        except Rejection:
            continue
        assert not {b".", b".."} & set(names)
        assert not any(b"/" in name or b"\0" in name for name in names)
        assert all(names[:-1])


@pytest.mark.campaign
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(SEGMENT, max_size=10), st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE"]), st.binary(max_size=100)
)
def test_any_request_at_length(fort: Served, names: list[str], method: str, noise: bytes) -> None:
    answer = request(fort, method, f"/v1/files/data/{'/'.join(names)}".encode(), b"X: " + noise + b"\r\n")
    assert SECRET not in answer
    assert status(answer) < 500


def swapping(served: Served, stop: threading.Event, swaps: list[int]) -> None:
    """Be a directory and a link to the outside, in turn, until told to stop."""
    door, aside = served.data / "door", served.data / "true"
    while not stop.is_set():
        if door.is_symlink():
            door.unlink()
        try:
            aside.rename(door)
        except OSError:  # an upload made a directory there in the meantime
            shutil.rmtree(door, ignore_errors=True)
            continue
        door.rename(aside)
        with contextlib.suppress(FileExistsError):
            door.symlink_to("../outside")
            swaps.append(1)


def race(served: Served, seconds: float) -> tuple[int, int]:
    """Read and upload through a directory that is a link to the outside every other moment."""
    outside = served.where / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    (served.data / "true").mkdir()
    (served.data / "true" / "secret").write_bytes(b"inside")
    stop, seen, swaps, good = threading.Event(), list[str](), list[int](), list[str]()

    def ask(number: int) -> None:
        content, path = b"%d" % number, f"door/new{number}"
        while not stop.is_set():
            answer = served.ask("GET", "/v1/files/data/door/secret")
            seen.extend(["read"] if SECRET in answer.body else [])
            good.extend(["read"] if answer.body == b"inside" else [])
            begun = served.begin(content, path)
            if begun.status in {200, 201}:
                served.put(begun.json, content, 0, len(content))
                done = served.ask("POST", f"/v1/uploads/{begun.json['id']}/commit")
                good.extend(["written"] if done.status == 200 else [])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=swapping, args=(served, stop, swaps)))
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    assert not seen
    assert [path.name for path in outside.iterdir()] == ["secret"], "something was written outside"
    assert (outside / "secret").read_bytes() == SECRET
    return len(swaps), len(good)


def test_links_that_appear_in_between(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        swaps, good = race(served, 1.5)
    assert swaps > 10
    assert good > 0


@pytest.mark.campaign
def test_links_that_appear_in_between_for_a_minute(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        assert min(race(served, 60)) > 0
