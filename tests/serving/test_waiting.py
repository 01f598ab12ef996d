"""Work that takes longer than a connection may live: it goes on alone, and whoever asks again finds it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from rrmove.manifest import Manifest, Range
from rrmove.serving import digests, uploads
from rrmove.serving.answers import Rejection
from rrmove.serving.parts import Parts
from rrmove.serving.roots import Root, RootSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def upload(tmp_path: Path) -> uploads.Upload:
    root = Root.open(RootSpec.parse(f"data={tmp_path}:rw"))
    return uploads.Upload(Parts(), root, (b"model.pth",), Manifest(4, 1 << 20, hashlib.sha256(b"data").digest()), {})


async def test_work_goes_on_without_the_one_who_asked(
    pool: ThreadPoolExecutor, upload: uploads.Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PATIENCE", 0.05)
    known, go, runs = uploads.Uploads(upload._parts, pool), threading.Event(), list[str]()

    def duty() -> str:
        runs.append("run")
        go.wait(10)
        return f"result {len(runs)}"

    assert await known.do(upload, "verifying", duty) == (False, None)
    assert upload.fields()["state"] == "verifying"
    assert await known.do(upload, "verifying", duty) == (False, None)
    assert await known.do(upload, "surveying", duty) == (False, None), "one thing at a time"
    go.set()
    assert upload.work is not None
    await upload.work
    assert upload.fields()["state"] == "open"
    assert await known.do(upload, "verifying", duty) == (True, "result 1"), "what nobody heard is told to the next one"
    assert await known.do(upload, "verifying", duty) == (True, "result 2"), "and only once"


async def test_a_failure_that_nobody_heard_is_told_unless_it_is_out_of_date(
    pool: ThreadPoolExecutor, upload: uploads.Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PATIENCE", 0.05)
    known, go, runs = uploads.Uploads(upload._parts, pool), threading.Event(), list[str]()
    known.opened(upload)

    def duty() -> str:
        runs.append("run")
        go.wait(10)
        if len(runs) % 2:
            raise Rejection(409, "something is missing")
        return "done"

    for news in (False, True):
        go.clear()
        assert await known.do(upload, "verifying", duty) == (False, None)
        go.set()
        assert upload.work is not None
        await asyncio.wait([upload.work])
        if news:
            known.put_into(upload.root, upload.part, Range(0, 4))
            assert await known.do(upload, "verifying", duty) == (True, "done")
        else:
            with pytest.raises(Rejection):
                await known.do(upload, "verifying", duty)
            assert await known.do(upload, "verifying", duty) == (True, "done")


async def test_a_digest_that_takes_its_time_is_there_later(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    os.utime(path, (1, 1))
    for _ in range(2):
        pool.submit(threading.Event().wait, 0.3)
    known = digests.Digests(pool)
    fd = os.open(path, os.O_RDONLY)
    seen = os.fstat(fd)
    assert await known.of(fd, seen, patience=0.05) is None
    assert await known.of(fd, seen, patience=0.05) is None
    os.close(fd)  # whoever asked is gone
    assert await known.of(-1, seen, patience=10) == hashlib.sha256(b"data").hexdigest(), "the same work, not once more"


async def test_a_file_that_changes_while_it_is_hashed_has_no_digest(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    known = digests.Digests(pool)
    fd = os.open(path, os.O_RDONLY)
    seen = os.fstat(fd)
    path.write_bytes(b"more data")
    assert await known.of(fd, seen, patience=10) is None
    os.close(fd)
