"""The manifest: which digests a file has, what is read for them, and the arithmetic of ranges."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rrmove import manifest as manifests
from rrmove.errors import UsageError
from rrmove.manifest import (
    DIGEST,
    GRAIN,
    MOST_CHUNKS,
    Manifest,
    Range,
    build,
    file_sha256,
    grain_for,
    merged,
    total,
    zero_digest,
)

KIB, GIB = 1 << 10, 1 << 30
SMALL = 4 * KIB  # a grain for tests: some chunks need no megabytes


def body(size: int, seed: int = 1) -> bytes:
    return (hashlib.shake_128(str(seed).encode()).digest(min(size, 65521)) * (size // 65521 + 1))[:size]


def made(path: Path, content: bytes) -> Manifest:
    path.write_bytes(content)
    return build(path, len(content))


@pytest.mark.parametrize("size", [0, 1, GRAIN - 1, GRAIN, GRAIN + 1, 3 * GRAIN, 3 * GRAIN + 17])
def test_every_chunk_is_hashed(tmp_path: Path, size: int) -> None:
    content = body(size)
    manifest = made(tmp_path / "file", content)
    assert (manifest.size, manifest.grain) == (size, GRAIN)
    assert manifest.count == -(-size // GRAIN)
    assert len(manifest.digests) == manifest.count * DIGEST
    chunks = [manifest.chunk(index) for index in range(manifest.count)]
    assert b"".join(content[chunk.start : chunk.stop] for chunk in chunks) == content
    for index, chunk in enumerate(chunks):
        assert manifest.digest(index) == hashlib.sha256(content[chunk.start : chunk.stop]).hexdigest()
        assert 0 < chunk.length <= GRAIN
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_number_of_threads_makes_no_difference(tmp_path: Path, threads: int) -> None:
    (tmp_path / "file").write_bytes(body(5 * GRAIN + 3))
    assert build(tmp_path / "file", 5 * GRAIN + 3, threads=threads) == build(tmp_path / "file", 5 * GRAIN + 3)


@pytest.mark.parametrize(
    ("size", "grain"),
    [
        (0, GRAIN),
        (1, GRAIN),
        (128 * GIB, GRAIN),
        (128 * GIB + 1, 2 * GRAIN),
        (256 * GIB, 2 * GRAIN),
        (256 * GIB + 1, 4 * GRAIN),
        (4096 * GIB, 32 * GRAIN),
    ],
)
def test_the_grain_grows_so_that_the_manifest_does_not(size: int, grain: int) -> None:
    assert grain_for(size) == grain


@given(st.integers(0, 1 << 60))
def test_a_manifest_never_has_too_many_chunks(size: int) -> None:
    grain = grain_for(size)
    assert size <= grain * MOST_CHUNKS
    assert grain == GRAIN or size > grain // 2 * MOST_CHUNKS  # and no coarser than that takes


def test_the_root_changes_with_any_change(tmp_path: Path) -> None:
    content = body(2 * GRAIN + 100)
    path = tmp_path / "file"
    roots = {made(path, content).root}
    for at in (0, 1, GRAIN - 1, GRAIN, 2 * GRAIN - 1, 2 * GRAIN, len(content) - 1):
        changed = bytearray(content)
        changed[at] ^= 1
        roots.add(made(path, bytes(changed)).root)
    swapped = content[GRAIN : 2 * GRAIN] + content[:GRAIN] + content[2 * GRAIN :]
    others = [swapped, content[:-1], content + b"\0", b"", b"\0", b"\0\0", b"\0" * GRAIN, b"\0" * (GRAIN + 1)]
    roots |= {made(path, other).root for other in others}
    assert len(roots) == 1 + 7 + len(others)
    assert made(path, content).root in roots


@given(
    st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 40), st.binary(max_size=96)),
    st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 40), st.binary(max_size=96)),
)
def test_the_root_covers_size_grain_and_digests(one: tuple[int, int, bytes], other: tuple[int, int, bytes]) -> None:
    assert (Manifest(*one).root == Manifest(*other).root) == (one == other)


def test_the_root_is_pinned() -> None:
    # Part files are named after it: another value would make those of older versions unusable.
    empty = hashlib.sha256(b"rrmove manifest 1\0" + bytes(8) + GRAIN.to_bytes(8, "big")).hexdigest()
    assert Manifest(0, GRAIN, b"").root == empty


# Holes


def test_a_hole_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, size = tmp_path / "sparse", 20 * GIB + 5
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(10 * GIB + 3)
        file.write(b"in the middle of nothing")
    if path.stat().st_blocks * 512 > GRAIN:
        pytest.skip("this file system keeps no holes")
    read, preadv = [0], os.preadv

    def counted(fd: int, buffers: list[memoryview], offset: int) -> int:
        got = preadv(fd, buffers, offset)
        read[0] += got
        return got

    monkeypatch.setattr("rrmove.manifest.os.preadv", counted)
    manifest = build(path, size)
    assert 0 < read[0] <= GRAIN
    middle = (10 * GIB + 3) // GRAIN
    assert [index for index in range(manifest.count) if not manifest.is_hole(index)] == [middle]
    expected = bytearray(GRAIN)
    expected[3:27] = b"in the middle of nothing"
    assert manifest.digest(middle) == hashlib.sha256(expected).hexdigest()
    assert manifest.digest(manifest.count - 1) == hashlib.sha256(bytes(5)).hexdigest()


def test_a_sparse_file_has_the_manifest_of_its_bytes(tmp_path: Path) -> None:
    content = bytearray(3 * GRAIN + 11)
    content[GRAIN + 70_000 : GRAIN + 70_009] = b"data here"
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(len(content))
        file.seek(GRAIN + 70_000)
        file.write(b"data here")
    assert build(tmp_path / "sparse", len(content)) == made(tmp_path / "full", bytes(content))


@pytest.mark.parametrize("length", [0, 1, manifests.BLOCK - 1, manifests.BLOCK, manifests.BLOCK + 1, GRAIN])
def test_zero_digest_is_that_of_zeros(length: int) -> None:
    assert zero_digest(length) == hashlib.sha256(bytes(length)).digest()


@pytest.mark.parametrize(
    ("content", "hole"), [(bytes(100), True), (bytes(99) + b"\1", False), (b"\1" + bytes(99), False)]
)
def test_is_hole_goes_by_the_bytes(tmp_path: Path, content: bytes, hole: bool) -> None:  # noqa: FBT001
    assert made(tmp_path / "file", content).is_hole(0) is hole


# What cannot be read


@pytest.mark.parametrize("size", [1, GRAIN, 3 * GRAIN])
@pytest.mark.parametrize("missing", [1, 700])
def test_a_source_shorter_than_it_was_is_refused(tmp_path: Path, size: int, missing: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(body(max(0, size - missing)))
    with pytest.raises(UsageError, match="became shorter"):
        build(path, size)


def test_a_sparse_source_shorter_than_it_was_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(GRAIN)
    with pytest.raises(UsageError, match="became shorter"):
        build(tmp_path / "sparse", 4 * GRAIN)


def test_a_source_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        build(tmp_path / "nothing", 10)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    made(tmp_path / "file", body(3 * GRAIN))
    with pytest.raises(UsageError):
        build(tmp_path / "file", 5 * GRAIN)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# Ranges

bounds = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted)
ranges = st.lists(bounds.map(lambda pair: Range(*pair)), max_size=8)


def points(items: list[Range] | tuple[Range, ...]) -> set[int]:
    return {at for item in items for at in range(item.start, item.stop)}


@given(ranges)
def test_merged_has_the_same_bytes_in_the_fewest_ranges(items: list[Range]) -> None:
    result = merged(items)
    assert points(result) == points(items)
    assert total(result) == len(points(items))
    assert all(item.length > 0 for item in result)
    assert all(one.stop < other.start for one, other in itertools.pairwise(result))
    assert merged(result) == result
    assert merged(reversed(items)) == result


@given(ranges, st.integers(1, 9), st.integers(0, 70))
@example([Range(0, 3), Range(3, 4), Range(17, 18)], 2, 18)
def test_chunks_of_gives_each_touched_chunk_once_in_order(items: list[Range], grain: int, size: int) -> None:
    inside = [Range(min(item.start, size), min(item.stop, size)) for item in items]
    manifest = Manifest(size, grain, bytes(DIGEST * -(-size // grain)))
    found = list(manifest.chunks_of(inside))
    assert found == sorted({at // grain for at in points(inside)})


@given(st.integers(0, 500), st.integers(1, 40))
def test_chunks_cover_the_file_without_gap_or_overlap(size: int, grain: int) -> None:
    manifest = Manifest(size, grain, bytes(DIGEST * -(-size // grain)))
    chunks = [manifest.chunk(index) for index in range(manifest.count)]
    assert merged(chunks) == ((Range(0, size),) if size else ())
    assert total(chunks) == size
