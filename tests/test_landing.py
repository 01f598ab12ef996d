"""The landing over a real agent: where a file lands, what is believed of a part file, and what is renamed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rrmove import landing as landings
from rrmove import manifest as manifests
from rrmove import retry
from rrmove.errors import Fatal, IntegrityError, RRMoveError, Transient, UsageError
from rrmove.landing import HOPELESS, PartFile, locate, part_id
from rrmove.manifest import GRAIN, Manifest, Range, build
from rrmove.session import FilePart
from rrmove.ssh.failures import StaleError
from tests.ssh.local import LocalSession, alive, request_for, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from rrmove.model import Request
    from rrmove.transport import Landing

KIB = 1 << 10
GRAIN_HERE = 8 * KIB  # so that files of some chunks are small


def _is_a_landing(part: PartFile) -> Landing:
    return part  # or mypy objects


@pytest.fixture(autouse=True)
def small_grain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "grain_for", lambda _: GRAIN_HERE)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
async def session(home: Path) -> AsyncIterator[LocalSession]:
    async with LocalSession(home) as opened:
        yield opened


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(5 * GRAIN_HERE + 77))
    path.chmod(0o640)
    os.utime(path, ns=(10**18, 1_600_000_000_123_456_789))
    return path


def manifest_of(path: Path) -> Manifest:
    return build(path, path.stat().st_size)


async def landing(session: LocalSession, request: Request, *, opened: bool = True) -> PartFile:
    """Do what a move does first."""
    manifest = manifest_of(request.source.path)
    part = PartFile(session, request, manifest, await locate(session, request, manifest))
    if opened:
        await part.open()
        await part.survey()
    return part


async def fill(session: LocalSession, part: PartFile, path: Path, *ranges: Range) -> None:
    """Put bytes of the source into the part file, as a transport does; all of them by default."""
    lane = await session.control()
    with path.open("rb") as file:
        for item in ranges or (Range(0, path.stat().st_size),):
            body = FilePart(file.fileno(), item.start, item.length)
            await lane.call("put", body, part=part.part, at=item.start)


async def deliver(session: LocalSession, request: Request) -> str:
    part = await landing(session, request)
    await fill(session, part, request.source.path)
    assert not await part.verify()
    return await part.commit()


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if not path.is_dir() or path.is_symlink())


# Where it lands


@pytest.mark.parametrize(
    ("destination", "target"),
    [
        ("", "model.bin"),
        ("~", "model.bin"),
        ("~/", "model.bin"),
        ("other", "other"),
        ("~/other", "other"),
        ("./other", "other"),
        ("dir", "dir/model.bin"),
        ("dir/", "dir/model.bin"),
        ("dir/.", "dir/model.bin"),
        ("dir/../other", "other"),
        ("new/", "new/model.bin"),
        ("new/deeper/file", "new/deeper/file"),
        ("to-dir", "dir/model.bin"),
        ("to-file", "dir/file"),
        ("to-nothing", "dir/nothing"),
        ("dir/file", "dir/file"),
        ("dir//file", "dir/file"),
        ("HOME/dir", "dir/model.bin"),
        ("HOME/new", "new"),
    ],
)
async def test_where_a_file_lands(
    session: LocalSession, home: Path, source: Path, destination: str, target: str
) -> None:
    (home / "dir").mkdir()
    (home / "dir" / "file").write_bytes(b"old")
    (home / "to-dir").symlink_to("dir")
    (home / "to-file").symlink_to("dir/file")
    (home / "to-nothing").symlink_to("dir/nothing")
    request = request_for(source, destination.replace("HOME", str(home)))
    before = left_in(home)
    place = await locate(session, request, manifest_of(source))
    assert place.target == str(home / target)
    assert left_in(home) == before
    assert not (home / "new").exists()  # to look changes nothing
    assert Path(place.part).parent == Path(place.target).parent  # a rename must not cross a file system
    assert Path(place.part).name.startswith(".")
    assert place.nearest == str(home if target.startswith("new") else (home / target).parent)
    assert place.writable
    assert place.free > 0
    assert await deliver(session, request) == str(home / target)
    assert (home / target).read_bytes() == source.read_bytes()
    for link in ("to-dir", "to-file", "to-nothing"):
        assert (home / link).is_symlink()  # what a link leads to is replaced, not the link
    assert not [name for name in left_in(home) if "rrmove" in name]


@pytest.mark.parametrize(
    ("make", "destination", "words"),
    [
        (lambda home: (home / "dir" / "model.bin").mkdir(parents=True), "dir", "is a directory"),
        (lambda home: os.mkfifo(home / "pipe"), "pipe", "no regular file"),
        (lambda home: (home / "null").symlink_to("/dev/null"), "null", "no regular file"),
    ],
)
async def test_where_no_file_can_land(
    session: LocalSession, home: Path, source: Path, make: Callable[[Path], None], destination: str, words: str
) -> None:
    make(home)
    with pytest.raises(UsageError, match=words):
        await landing(session, request_for(source, destination))


async def test_a_file_in_the_way_of_a_directory(session: LocalSession, home: Path, source: Path) -> None:
    (home / "file").write_bytes(b"old")
    for destination in ("file/", "file/below"):
        with pytest.raises(Fatal, match="destination cannot be used"):
            await landing(session, request_for(source, destination))
    assert (home / "file").read_bytes() == b"old"


ODD_NAMES = [
    "two words",
    "line\nfeed",
    "'single' and \"double\"",
    "$(touch oops) `touch oops` ; touch oops",
    "-rf",
    "*?[a]",
    "back\\slash",
    "ümläut ☃",
    "x" * 255,
    "☃" * 85,  # 255 bytes; a cut after 200 is inside a character
    os.fsdecode(b"latin-\xe9\xff"),
    os.fsdecode(bytes(range(1, 47)) + bytes(range(48, 128))),
    ".hidden",
    " ",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
async def test_any_name_lands(session: LocalSession, home: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "source" / name
    path.parent.mkdir()
    path.write_bytes(os.urandom(GRAIN_HERE + 5))
    for destination, target in (("", name), (f"here/{name}", f"here/{name}"), (f"sub/{name}/", f"sub/{name}/{name}")):
        request = request_for(path, destination)
        assert await deliver(session, request) == str(home / target)
        assert (home / target).read_bytes() == path.read_bytes()
        assert await (await landing(session, request, opened=False)).arrived()
    assert left_in(home) == [name] * 3


# From open to commit


async def test_the_straight_way(session: LocalSession, home: Path, source: Path) -> None:
    request = request_for(source, "deep/down/here.bin")
    part = await landing(session, request)
    manifest = manifest_of(source)
    seen = Path(part.part).stat()
    assert (seen.st_size, stat.S_IMODE(seen.st_mode)) == (manifest.size, 0o600)  # nobody reads an unfinished file
    whole: tuple[Range, ...] = (Range(0, manifest.size),)
    assert part.missing == whole
    assert await part.survey() == whole
    await fill(session, part, source, Range(0, GRAIN_HERE), Range(3 * GRAIN_HERE, 4 * GRAIN_HERE))
    rest: tuple[Range, ...] = (Range(GRAIN_HERE, 3 * GRAIN_HERE), Range(4 * GRAIN_HERE, manifest.size))
    assert await part.survey() == rest == part.missing
    with pytest.raises(IntegrityError, match="not everything has been verified"):
        await part.commit()
    assert not (home / "deep/down/here.bin").exists()
    await fill(session, part, source, *rest)
    assert part.missing == rest  # nobody has looked yet
    assert await part.verify() == ()
    assert await part.commit() == str(home / "deep/down/here.bin")
    moved = (home / "deep/down/here.bin").stat()
    assert (home / "deep/down/here.bin").read_bytes() == source.read_bytes()
    assert stat.S_IMODE(moved.st_mode) == 0o640
    assert moved.st_mtime_ns == source.stat().st_mtime_ns
    assert left_in(home) == ["here.bin"]


@pytest.mark.parametrize("size", [0, 1, GRAIN_HERE - 1, GRAIN_HERE, GRAIN_HERE + 1])
async def test_any_size_lands(session: LocalSession, home: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    assert await deliver(session, request_for(path)) == str(home / "file")
    assert (home / "file").read_bytes() == path.read_bytes()
    assert left_in(home) == ["file"]


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o755, 0o4755, 0o2711])
async def test_mode_follows_the_source_but_for_what_would_be_dangerous(
    session: LocalSession, home: Path, source: Path, mode: int
) -> None:
    source.chmod(mode)
    await deliver(session, request_for(source))
    assert stat.S_IMODE((home / "model.bin").stat().st_mode) == mode & 0o777


async def test_the_journal_tells_what_the_part_is(session: LocalSession, source: Path) -> None:
    part = await landing(session, request_for(source, "where"))
    note = json.loads(Path(part.place.journal).read_text())
    manifest = manifest_of(source)
    assert {key: note[key] for key in ("name", "destination", "size", "grain", "root")} == {
        "name": "model.bin",
        "destination": "where",
        "size": manifest.size,
        "grain": manifest.grain,
        "root": manifest.root,
    }
    assert note["from"].endswith(f":{os.getpid()}")
    assert not Path(f"{part.place.journal}~").exists()


async def test_a_reader_sees_the_old_file_or_the_new_one(session: LocalSession, home: Path, source: Path) -> None:
    target = home / "model.bin"
    target.write_bytes(b"the old one")
    with target.open("rb") as reader:
        part = await landing(session, request_for(source))
        await fill(session, part, source)
        assert not await part.verify()
        assert target.read_bytes() == b"the old one"
        await part.commit()
        assert reader.read() == b"the old one"
    assert target.read_bytes() == source.read_bytes()


async def test_what_is_there_already_has_arrived(session: LocalSession, home: Path, source: Path) -> None:
    request, target = request_for(source), home / "model.bin"
    for content, there in (
        (None, False),
        (source.read_bytes(), True),
        (source.read_bytes()[:-1], False),
        (source.read_bytes() + b"x", False),
        (source.read_bytes()[:-1] + bytes([source.read_bytes()[-1] ^ 1]), False),
        (b"", False),
    ):
        if content is not None:
            target.write_bytes(content)
        part = await landing(session, request, opened=False)
        assert await part.arrived() is there
        assert part.missing == (Range(0, part._manifest.size),)  # the target says nothing of the part
    assert left_in(home) == ["model.bin"]


# Opened with the first look


async def test_looking_and_opening_in_one_round_trip(session: LocalSession, home: Path, source: Path) -> None:
    request, manifest = request_for(source, "new/"), manifest_of(source)
    part = PartFile(session, request, manifest, await locate(session, request, manifest, opening=True))
    assert part.place.opened is not None
    assert not part.foreign
    assert Path(part.part).stat().st_size == manifest.size
    await part.open()
    assert await part.survey() == (Range(0, manifest.size),)
    await fill(session, part, source)
    assert not await part.verify()
    assert await part.commit() == str(home / "new" / "model.bin")
    assert (home / "new" / "model.bin").read_bytes() == source.read_bytes()


async def test_nothing_is_opened_where_the_file_may_have_arrived(
    session: LocalSession, home: Path, source: Path
) -> None:
    (home / "model.bin").write_bytes(bytes(source.stat().st_size))
    request, manifest = request_for(source), manifest_of(source)
    part = PartFile(session, request, manifest, await locate(session, request, manifest, opening=True))
    assert part.place.opened is None
    assert left_in(home) == ["model.bin"]
    assert not await part.arrived()
    await part.open()
    assert await part.survey() == (Range(0, manifest.size),)


@pytest.mark.parametrize("there", ["part", "zeros", "other"])
async def test_a_part_that_was_there_is_not_taken_for_a_fresh_one(
    session: LocalSession, home: Path, source: Path, there: str
) -> None:
    request, manifest = request_for(source), manifest_of(source)
    before = await landing(session, request)
    if there == "part":
        await fill(session, before, source, Range(0, GRAIN_HERE))
    elif there == "other":
        Path(before.part).write_bytes(b"something else")
    for lane in session.lanes:
        await lane.close()
    async with LocalSession(home) as later:
        part = PartFile(later, request, manifest, await locate(later, request, manifest, opening=True))
        assert part.foreign
        assert await part.survey() == (Range(GRAIN_HERE if there == "part" else 0, manifest.size),)


async def test_the_first_look_may_be_repeated(session: LocalSession, source: Path) -> None:
    # Its answer was lost: the part that it made is found, looked at, and no longer fresh.
    request, manifest = request_for(source), manifest_of(source)
    await locate(session, request, manifest, opening=True)
    part = PartFile(session, request, manifest, await locate(session, request, manifest, opening=True))
    await fill(session, part, source, Range(0, GRAIN_HERE))
    await part.open()
    assert await part.survey() == (Range(GRAIN_HERE, manifest.size),)


async def test_a_fresh_part_of_a_source_with_holes_is_looked_at(
    session: LocalSession, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(3 * GRAIN_HERE))
    request, manifest = request_for(path), manifest_of(path)
    part = PartFile(session, request, manifest, await locate(session, request, manifest, opening=True))
    await part.open()
    assert await part.survey() == ()
    assert not await part.verify()
    await part.commit()
    assert (home / "zeros").read_bytes() == bytes(3 * GRAIN_HERE)


# Resume


async def test_a_later_move_continues(session: LocalSession, home: Path, source: Path) -> None:
    request = request_for(source)
    first = await landing(session, request)
    await fill(session, first, source, Range(0, 2 * GRAIN_HERE + 100))
    async with LocalSession(home) as other:
        later = await landing(other, request)
        assert later.part == first.part
        assert await later.survey() == (Range(2 * GRAIN_HERE, source.stat().st_size),)
        await fill(other, later, source, *later.missing)
        assert not await later.verify()
        await later.commit()
    assert (home / "model.bin").read_bytes() == source.read_bytes()


async def test_opened_again_nothing_is_lost(session: LocalSession, source: Path) -> None:
    part = await landing(session, request_for(source))
    await fill(session, part, source, Range(0, GRAIN_HERE))
    await part.survey()
    for _ in range(3):
        await part.open()
        assert part.missing == (Range(GRAIN_HERE, source.stat().st_size),)


async def test_a_part_that_grew_or_shrank_is_made_right(session: LocalSession, home: Path, source: Path) -> None:
    part = await landing(session, request_for(source))
    await fill(session, part, source)
    for size in (source.stat().st_size + 999, GRAIN_HERE + 1):
        os.truncate(part.part, size)
        part = await landing(session, request_for(source))
        missing = await part.survey()
        await fill(session, part, source, *missing)
        assert not await part.survey()
    assert not await part.verify()
    await part.commit()
    assert (home / "model.bin").read_bytes() == source.read_bytes()


async def test_trim_forgets_what_it_cut(session: LocalSession, source: Path) -> None:
    part, size = await landing(session, request_for(source)), source.stat().st_size
    await fill(session, part, source)
    assert not await part.survey()
    await part.trim(2 * GRAIN_HERE + 1)
    assert Path(part.part).stat().st_size == 2 * GRAIN_HERE + 1
    assert part.missing == (Range(2 * GRAIN_HERE, size),)
    assert await part.survey() == (Range(2 * GRAIN_HERE, size),)
    await part.open()
    await part.trim(0)
    assert part.missing == (Range(0, size),)


async def test_holes_of_the_source_need_not_be_sent(session: LocalSession, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(6 * GRAIN_HERE)
        file.seek(3 * GRAIN_HERE)
        file.write(b"data")
    part = await landing(session, request_for(path))
    assert await part.survey() == (Range(3 * GRAIN_HERE, 4 * GRAIN_HERE),)
    await fill(session, part, path, Range(3 * GRAIN_HERE, 4 * GRAIN_HERE))
    assert not await part.verify()
    await part.commit()
    assert (home / "sparse").read_bytes() == path.read_bytes()


# What must not be committed


async def ready_to_commit(session: LocalSession, request: Request) -> PartFile:
    part = await landing(session, request)
    await fill(session, part, request.source.path)
    assert not await part.verify()
    return part


def wipe(part: Path) -> None:
    part.unlink()


def replace_by_zeros(part: Path) -> None:
    size = part.stat().st_size
    part.unlink()
    with part.open("wb") as file:
        file.truncate(size)


def replace_by_rename(part: Path) -> None:
    other = part.with_name("other")
    other.write_bytes(bytes(part.stat().st_size))
    other.rename(part)


def cut(part: Path) -> None:
    os.truncate(part, 5)


def lengthen(part: Path) -> None:
    with part.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("harm", [wipe, replace_by_zeros, replace_by_rename, cut, lengthen])
@pytest.mark.parametrize("old", [None, "as long"])
async def test_a_part_that_changed_after_its_verification_is_not_committed(
    session: LocalSession, home: Path, source: Path, harm: Callable[[Path], None], old: str | None
) -> None:
    target, content = home / "model.bin", source.read_bytes()
    before = bytes(len(content)) if old else None
    if before is not None:
        target.write_bytes(before)
    part = await ready_to_commit(session, request_for(source))
    harm(Path(part.part))
    with pytest.raises(StaleError):
        await part.commit()
    assert (target.read_bytes() if target.exists() else None) == before
    assert part.missing == (Range(0, len(content)),)  # nothing is believed any more
    await part.open()
    await fill(session, part, source, *await part.survey())
    assert not await part.verify()
    await part.commit()
    assert target.read_bytes() == content


async def test_a_part_that_is_replaced_while_it_is_read_is_read_again(
    session: LocalSession, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landings, "BATCH", GRAIN_HERE)  # one chunk an answer
    part = await landing(session, request_for(source))
    await fill(session, part, source)
    seen, real = 0, PartFile._is_now

    def replaced_meanwhile(self: PartFile, ino: str | None) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            replace_by_rename(Path(self.part))
        real(self, ino)

    monkeypatch.setattr(PartFile, "_is_now", replaced_meanwhile)
    assert await part.survey() == (Range(0, source.stat().st_size),)
    with pytest.raises(IntegrityError):
        await part.commit()


@pytest.mark.parametrize("at", [0, GRAIN_HERE - 1, GRAIN_HERE, 3 * GRAIN_HERE + 5, 5 * GRAIN_HERE + 76])
async def test_one_wrong_byte_is_found(session: LocalSession, source: Path, at: int) -> None:
    part = await landing(session, request_for(source))
    await fill(session, part, source)
    with Path(part.part).open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    bad = part._manifest.chunk(at // GRAIN_HERE)
    assert await part.survey() == (bad,)
    await fill(session, part, source, bad)
    assert not await part.verify()


async def test_what_a_foreign_transport_touched_is_read_again_as_a_whole(
    session: LocalSession, home: Path, source: Path
) -> None:
    part = await landing(session, request_for(source))
    await fill(session, part, source)
    assert not await part.survey()
    part.foreign = True  # as the core says before rsync and its like begin
    with Path(part.part).open("r+b") as file:
        file.write(b"!!!")
    with pytest.raises(IntegrityError):
        await part.commit()
    assert await part.verify() == (Range(0, GRAIN_HERE),)
    assert left_in(home) == sorted(Path(name).name for name in (part.part, part.place.journal))


def spoil(part: PartFile) -> None:
    with Path(part.part).open("r+b") as file:
        file.write(b"!!!")


@pytest.mark.parametrize("own", [True, False])
async def test_what_was_verified_under_a_seal_is_not_read_again_and_only_our_own_can_seal(
    session: LocalSession,
    source: Path,
    own: bool,  # noqa: FBT001
) -> None:
    part = await landing(session, request_for(source))
    part.lent(own=own, lanes_only=False)
    await part.claim()
    await fill(session, part, source)
    assert not await part.check(range(part.manifest.count), sealed=True)
    spoil(part)  # which nobody can, says who sealed it
    assert await part.verify() == (() if own else (Range(0, GRAIN_HERE),))
    if own:
        part.lent(own=True, lanes_only=False)  # the next one may write anywhere
        assert await part.verify() == (Range(0, GRAIN_HERE),)


async def test_a_seal_is_void_where_a_stranger_was_at_the_part_file(
    session: LocalSession, source: Path, writers: Callable[..., subprocess.Popen[bytes]]
) -> None:
    part = await landing(session, request_for(source))
    part.lent(own=True, lanes_only=False)
    await part.claim()
    await fill(session, part, source)
    assert not await part.check(range(part.manifest.count), sealed=True)
    stranger = writers(part.part)
    spoil(part)
    assert await part.verify() == (Range(0, GRAIN_HERE),)
    assert stranger.wait(5) == -signal.SIGTERM


async def test_who_has_verified_before_somebody_laid_claim_does_so_anew(session: LocalSession, source: Path) -> None:
    ours = await landing(session, request_for(source))
    await fill(session, ours, source)
    assert not await ours.verify()
    theirs = await landing(session, request_for(source))
    await theirs.claim()
    spoil(ours)
    with pytest.raises(StaleError):
        await ours.commit()
    await ours.open()
    assert await ours.survey() == (Range(0, GRAIN_HERE),)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 5 * GRAIN_HERE + 76), st.binary(min_size=1, max_size=3000)), max_size=5))
def test_survey_is_right_about_any_part(tmp_path: Path, damage: list[tuple[int, bytes]]) -> None:
    path, home = tmp_path / "any.bin", tmp_path / "any-home"
    content = bytes(range(256)) * 160 + b"x" * 77  # 5 chunks and a bit
    path.write_bytes(content)
    home.mkdir(exist_ok=True)

    async def work() -> tuple[Range, ...]:
        async with LocalSession(home) as session:
            part = await landing(session, request_for(path))
            held = bytearray(content)
            for at, data in damage:
                held[at : at + len(data)] = data[: len(held) - at]
            Path(part.part).write_bytes(held)
            expected = manifests.merged(
                chunk
                for chunk in map(part._manifest.chunk, range(part._manifest.count))
                if held[chunk.start : chunk.stop] != content[chunk.start : chunk.stop]
            )
            assert await part.survey(everything=True) == expected
            return expected

    asyncio.run(work())


# A source that changes


async def test_a_changed_source_is_not_committed(session: LocalSession, home: Path, source: Path) -> None:
    part = await ready_to_commit(session, request_for(source))
    with source.open("r+b") as file:
        file.write(b"changed")
    with pytest.raises(Fatal, match="changed while it was sent"):
        await part.commit()
    assert not (home / "model.bin").exists()


async def test_a_chunk_that_is_wrong_again_and_again_is_given_up(session: LocalSession, source: Path) -> None:
    part = await landing(session, request_for(source))
    await fill(session, part, source, Range(0, GRAIN_HERE))
    assert await part.check([0]) == ()
    for _ in range(HOPELESS - 1):
        assert await part.check([0, 1]) == (1,)
    assert await part.check([2]) == (2,)  # each chunk is counted by itself
    with pytest.raises(IntegrityError, match=f"bytes {GRAIN_HERE} to {2 * GRAIN_HERE} arrive wrong again and again"):
        await part.check([1])


async def test_a_wrong_chunk_of_a_changed_source_is_no_fault_of_the_link(
    session: LocalSession, home: Path, source: Path
) -> None:
    part = await landing(session, request_for(source))
    with source.open("r+b") as file:
        file.seek(GRAIN_HERE)
        file.write(b"changed")
    os.utime(source, ns=(10**18, part._request.source.mtime_ns))  # whoever hides it
    with pytest.raises(Fatal, match="changed while it was sent"):
        await part.check([1])
    source.unlink()
    with pytest.raises(Fatal, match="changed while it was sent"):
        await part.check([1])
    assert not (home / "model.bin").exists()


async def test_check_over_a_lane_that_died_blames_nobody(session: LocalSession, source: Path) -> None:
    part = await landing(session, request_for(source))
    lane = await session.open_lane()
    await lane.close()
    with pytest.raises(Transient):
        await part.check([0], lane)
    assert not part._wrong


# Answers that are lost


async def test_a_commit_whose_answer_was_lost_is_a_success(
    session: LocalSession, home: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = await ready_to_commit(session, request_for(source))
    lane = await session.control()
    real, asked = type(lane).call, list[str]()

    async def call(self: object, op: str, /, *body: object, **arguments: object) -> object:
        reply = await real(self, op, *body, **arguments)  # type: ignore[arg-type]
        asked.append(op)
        if op == "commit" and asked.count("commit") == 1:
            session.channels[-1].kill()
            raise Transient("lost")
        return reply

    monkeypatch.setattr(type(lane), "call", call)
    assert await part.commit() == str(home / "model.bin")
    assert len(session.channels) == 2  # it asked again, over a new connection
    assert (home / "model.bin").read_bytes() == source.read_bytes()
    assert left_in(home) == ["model.bin"]


async def test_a_repeated_commit_succeeds_only_while_the_file_is_there(
    session: LocalSession, home: Path, source: Path
) -> None:
    part = await ready_to_commit(session, request_for(source))
    await part.commit()
    assert await part.commit() == str(home / "model.bin")
    (home / "model.bin").write_bytes(bytes(source.stat().st_size))
    with pytest.raises(StaleError):
        await part.commit()
    (home / "model.bin").unlink()
    with pytest.raises(RRMoveError):
        await part.commit()


async def test_everything_may_die_everywhere(home: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill every other connection at some moment of its life: the repeats end well."""
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    request, content = request_for(source, "sub/"), source.read_bytes()
    async with LocalSession(home) as session, LocalSession(home) as calm:
        killing = asyncio.create_task(_kill_every_other(session))
        part = await landing(session, request)
        await fill(calm, part, source)
        while len(session.channels) < 7:
            await part.open()
            part.foreign = True
            assert not await part.verify()
        await part.commit()
        assert await part.commit() == str(home / "sub" / "model.bin")
        killing.cancel()
    assert (home / "sub" / "model.bin").read_bytes() == content
    assert left_in(home) == ["model.bin"]


async def _kill_every_other(session: LocalSession) -> None:
    dice, killed = random.Random(7), 0
    while True:
        await asyncio.sleep(0.001)
        if len(session.lanes) > killed and session.lanes[killed].up:
            await asyncio.sleep(dice.uniform(0, 0.02) if killed % 2 else 0.05)
            await asyncio.to_thread(session.channels[killed].kill)
            killed += 1


# Room


async def test_a_disk_that_is_too_full_refuses_before_the_first_byte(
    session: LocalSession, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "giant"
    with path.open("wb") as file:
        file.truncate(5 * GRAIN_HERE)
    target = home / "giant"
    target.write_bytes(b"old")
    request = request_for(path)
    manifest = replace(manifest_of(path), size=1 << 60, grain=1 << 58, digests=bytes(32 * 4))
    part = PartFile(session, request, manifest, await locate(session, request, manifest))
    part._manifest = manifest
    with pytest.raises(Fatal, match=r"the disk is full: .* are needed, .* are free, .* are missing"):
        await _open_without_looking_for_holes(part)
    assert target.read_bytes() == b"old"
    assert left_in(home) == ["giant"]


async def _open_without_looking_for_holes(part: PartFile) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "is_hole", lambda *_: False)
        await part.open()


async def test_what_a_part_holds_already_needs_no_room_again(
    session: LocalSession, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs: list[int] = []

    async def asked(session_: LocalSession, op: str, **arguments: object) -> dict[str, object]:
        if op == "open":
            needs.append(int(str(arguments["need"])))
        return await retry.ask(session_, op, **arguments)

    monkeypatch.setattr("rrmove.landing.ask", asked)
    part = await landing(session, request_for(source))
    await fill(session, part, source, Range(0, 2 * GRAIN_HERE))
    subprocess.run(["sync", part.part], check=True)  # delayed allocation: blocks are counted once written
    await part.open()
    await fill(session, part, source)
    subprocess.run(["sync", part.part], check=True)
    await part.open()
    size = source.stat().st_size
    assert needs[0] == size
    assert needs[1] <= size - 2 * GRAIN_HERE
    assert needs[2] == 0


# Several at once


async def test_different_contents_for_one_target_never_meet(
    session: LocalSession, home: Path, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "model.bin"
    other.parent.mkdir()
    other.write_bytes(os.urandom(source.stat().st_size))
    one, two = await landing(session, request_for(source)), await landing(session, request_for(other))
    assert one.place.target == two.place.target
    assert one.part != two.part
    assert one.place.journal != two.place.journal
    await fill(session, one, source)
    await fill(session, two, other, Range(0, GRAIN_HERE))
    assert not await one.verify()
    await one.commit()
    assert (home / "model.bin").read_bytes() == source.read_bytes()
    await fill(session, two, other)
    assert not await two.verify()
    await two.commit()
    assert (home / "model.bin").read_bytes() == other.read_bytes()
    assert left_in(home) == ["model.bin"]


def test_a_part_is_named_after_all_that_matters(source: Path, tmp_path: Path) -> None:
    request, manifest = request_for(source), manifest_of(source)
    renamed = tmp_path / "renamed"
    renamed.write_bytes(source.read_bytes())
    names = [
        part_id(manifest, request),
        part_id(manifest, replace(request, destination="elsewhere")),
        part_id(manifest, request_for(renamed)),
        part_id(replace(manifest, size=manifest.size + 1), request),
        part_id(replace(manifest, grain=GRAIN), request),
        part_id(replace(manifest, digests=manifest.digests[:-1] + b"\0"), request),
    ]
    assert len(set(names)) == len(names)
    assert part_id(manifest, request_for(source)) == names[0]


async def test_two_senders_of_the_same_content_help_each_other(home: Path, source: Path) -> None:
    request, size = request_for(source), source.stat().st_size
    async with LocalSession(home) as one, LocalSession(home) as two:
        parts = await asyncio.gather(landing(one, request), landing(two, request))
        assert parts[0].part == parts[1].part
        await asyncio.gather(
            fill(one, parts[0], source, Range(0, 3 * GRAIN_HERE)), fill(two, parts[1], source, Range(GRAIN_HERE, size))
        )
        assert [await part.verify() for part in parts] == [(), ()]
        assert [await part.commit() for part in parts] == [str(home / "model.bin")] * 2
    assert (home / "model.bin").read_bytes() == source.read_bytes()
    assert left_in(home) == ["model.bin"]


async def test_many_senders_open_at_the_same_time(home: Path, source: Path) -> None:
    sessions = [LocalSession(home) for _ in range(6)]
    try:
        parts = await asyncio.gather(*(landing(session, request_for(source)) for session in sessions))
        for _ in range(10):
            await asyncio.gather(*(part.open() for part in parts))
    finally:
        for session in sessions:
            await session.__aexit__(None, None, None)
    assert len(left_in(home)) == 2


# Aside and away


async def test_quarantine(session: LocalSession, home: Path, source: Path) -> None:
    part = await landing(session, request_for(source))
    await fill(session, part, source, Range(0, GRAIN_HERE))
    aside = Path(await part.quarantine())
    assert left_in(home) == [aside.name]
    assert aside.name.endswith(".rrmove-bad")
    again = await landing(session, request_for(source))
    assert await again.survey() == (Range(0, source.stat().st_size),)  # nobody continues it


async def sweep(session: LocalSession, older_than: float, *directories: str, depth: int = 3) -> dict[str, list[str]]:
    lane = await session.control()
    reply = await lane.call("sweep", directories=list(directories) or [""], older_than=older_than, depth=depth)
    return {key: sorted(Path(path).name for path in reply.fields[key]) for key in ("removed", "kept")}  # type: ignore[attr-defined]


async def test_sweep_removes_what_is_old_and_ours_and_nothing_else(session: LocalSession, home: Path) -> None:
    week, now = landings.OLD, time.time()
    ages = {"old": week + 3600, "young": week - 3600, "new": 0.0, "future": -3600.0}
    for name, age in ages.items():
        for end in ("rrmove-part", "rrmove-journal", "rrmove-journal~", "rrmove-bad"):
            path = home / "data" / f".{name}.0123456789ab.{end}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
            os.utime(path, (now - age, now - age))
    others = ["old.rrmove-part", ".old.rrmove-part.txt", ".rrmove-parts", ".bashrc", "file"]
    for name in others:
        (home / name).write_bytes(b"")
        os.utime(home / name, (1, 1))
    swept = await sweep(session, week)
    ends = ("rrmove-bad", "rrmove-journal", "rrmove-journal~", "rrmove-part")
    assert swept == {"removed": sorted(f".old.0123456789ab.{end}" for end in ends), "kept": []}
    swept = await sweep(session, 0)
    assert swept["removed"] == sorted(f".{name}.0123456789ab.{end}" for name in ("new", "young") for end in ends)
    assert {name for name in left_in(home) if "future" not in name} == set(others)


async def test_sweep_looks_no_deeper_than_it_should(session: LocalSession, home: Path) -> None:
    for depth in range(5):
        folder = home.joinpath("top", *"abcd"[:depth])
        folder.mkdir(parents=True)
        (folder / f".{depth}.k.rrmove-part").write_bytes(b"")
    (home / "top" / "link").symlink_to(home / "top" / "a")
    assert (await sweep(session, 0, "~/top", depth=2))["removed"] == [f".{depth}.k.rrmove-part" for depth in range(3)]
    assert await sweep(session, 0, str(home / "nowhere"), depth=2) == {"removed": [], "kept": []}


async def test_sweep_keeps_what_somebody_has_open(session: LocalSession, home: Path, source: Path) -> None:
    part = await landing(session, request_for(source))
    await fill(session, part, source)
    name = Path(part.part).name
    async with LocalSession(home) as other:
        assert name in (await sweep(other, 0))["kept"]
        assert Path(part.part).exists()
        for lane in session.lanes:
            await lane.close()
        assert name in (await sweep(other, 0))["removed"]
    assert not Path(part.part).exists()


# Strangers

WRITER = "import os,sys,time; f=open(sys.argv[1],'r+b'); print('here',flush=True); {0}time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


@pytest.fixture
def writers() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes that keep a file open."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        path: str, *, stubborn: bool = False, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        program = WRITER.format(STUBBORN if stubborn else "")
        argv = [sys.executable, "-S", "-c", (STUBBORN if stubborn else "") + program, path]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def test_a_foreign_writer_is_ended_before_we_look(
    session: LocalSession, source: Path, writers: Callable[..., subprocess.Popen[bytes]]
) -> None:
    await landing(session, request_for(source))
    part = await landing(session, request_for(source))  # it finds a part that others have made
    assert part.foreign
    gentle, stubborn = writers(part.part), writers(part.part, stubborn=True)
    bystander = writers(str(source))
    agent = writers(part.part, environment={"RRMOVE_AGENT": "1"})
    async with LocalSession(session.home) as other:
        await fill(other, part, source)  # a true agent, which keeps the part open
        pid = int(str((await (await other.control()).call("hello")).fields["pid"]))
        assert not await part.verify()
        assert alive(pid)
    assert gentle.wait(5) == -signal.SIGTERM
    assert stubborn.wait(5) == -signal.SIGKILL
    assert bystander.poll() is None
    assert agent.poll() is None
    assert not part.foreign


async def test_what_an_agent_started_is_a_foreign_writer(session: LocalSession, source: Path) -> None:
    part = await landing(session, request_for(source))
    lane = await session.control()
    program = f"exec 3<>'{part.part}'; echo $$ > pid; exec sleep 60"
    running = asyncio.create_task(lane.call("run", argv=["sh", "-c", program], timeout=60))
    pid = session.home / "pid"
    assert await asyncio.to_thread(until, lambda: pid.exists() and pid.read_text().strip() != "")
    part.foreign = True
    await part.survey()
    assert not alive(int(pid.read_text()))
    assert (await running).fields["status"] == -signal.SIGTERM
