"""rrmove-validators, installed beside rrmove: files that open and files that do not, on their own and in real moves."""

from __future__ import annotations

import io
import json
import os
import pickle
import sqlite3
import struct
import zipfile
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from rrmove_validators import npz, rrmove_prepare, rrmove_validate, safetensors, sqlite, torch

import rrmove
from rrmove.testing import EmbeddedNode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def array(shape: tuple[int, ...] = (3, 4), kind: str = "<f4", data: int | None = None, version: int = 1) -> bytes:
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-len(header) % 64) + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + os.urandom(48 if data is None else data)


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return buffer.getvalue()


def tensors(header: object, data: int, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + os.urandom(data)


def one(shape: list[int], offsets: list[int], kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


NPZ = archive({"a.npy": array(), "b.npy": array((12,), version=2)})
PACKED = archive({"a.npy": array()}, zipfile.ZIP_DEFLATED)
TORCH = archive({"m/data.pkl": pickle.dumps({"w": 1}, protocol=2), "m/data/0": os.urandom(5000), "m/version": b"3\n"})
GOOD = {
    "two.npz": NPZ,
    "packed.npz": PACKED,
    "text.npz": archive({"a.npy": array((2,), "<U3", 24), "note.txt": b"x"}),
    "objects.npz": archive({"a.npy": array((2,), "|O", 7)}),
    "scalar.npy": array((), "<f8", 8),
    "records.npy": array((1,), "V7", 7),
    "empty.npz": archive({}),
    "one.safetensors": tensors(
        {"a": one([2, 2], [0, 16]), "b": one([3], [16, 19], "U8"), "__metadata__": {"k": "v"}}, 19
    ),
    "none.safetensors": tensors({}, 0),
    "nibbles.safetensors": tensors({"a": one([4], [0, 2], "F4")}, 2),
    "model.pth": TORCH,
    "old.pt": pickle.dumps([1, 2], protocol=2) + os.urandom(100),
    "whatever.bin": b"\x93NUMPY",
    "empty": b"",
}
BAD = {
    "cut.npz": (NPZ[:-30], "broken or cut short"),
    "flipped.npz": (NPZ.replace(NPZ[200:210], bytes(10), 1), "broken|header"),
    "packed.npz": (PACKED[:80] + bytes(20) + PACKED[100:], "broken|header"),
    "short.npz": (archive({"a.npy": array(data=40)}), "'a.npy' in it has 40 bytes of data where .* has 48"),
    "no-array.npz": (archive({"a.npy": b"hello"}), "does not begin as"),
    "header.npy": (array()[:20], "ends in its header"),
    "evil.npy": (b"\x93NUMPY\x01\x00" + struct.pack("<H", 5) + b"1+(()", "header that cannot be read"),
    "nothing.npy": (b"", "does not begin"),
    "cut.safetensors": (tensors({"a": one([4], [0, 16])}, 15), "holds 15 bytes .* says 16"),
    "more.safetensors": (tensors({"a": one([4], [0, 16])}, 17), "holds 17 bytes"),
    "gap.safetensors": (tensors({"a": one([1], [0, 4]), "b": one([1], [8, 12])}, 12), "'b' begins at 8"),
    "size.safetensors": (tensors({"a": one([5], [0, 16])}, 16), "'a' has 16 bytes"),
    "odd.safetensors": (tensors({"a": 7}, 0), "no proper description"),
    "json.safetensors": (tensors(b"{", 0), "no JSON"),
    "list.safetensors": (tensors([], 0), "no JSON object"),
    "huge.safetensors": (tensors({}, 0, length=1 << 60), "ends in its header"),
    "nothing.safetensors": (b"", "ends in its header"),
    "cut.pth": (TORCH[:-100], "broken or cut short"),
    "zeros.pth": (bytes(10_000), "neither a zip archive nor a pickle"),
    "other.pt": (archive({"a.txt": b"x"}), "no data.pkl"),
    "pickle.pt": (archive({"m/data.pkl": pickle.dumps({"w": 1})[:-1]}), "data.pkl in it is broken"),
    "old.pt": (pickle.dumps(list(range(1000)), protocol=2)[:500], "broken or cut short"),
}


def judged(path: Path) -> str | None:
    return rrmove_prepare(rrmove.Source.of(path)) or rrmove_validate(rrmove.Source.of(path))


@pytest.mark.parametrize("name", GOOD)
def test_what_opens_passes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(GOOD[name])
    assert judged(path) is None


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_open_is_turned_down(name: str, tmp_path: Path) -> None:
    content, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AssertionError, match=f"(?s){reason}"):
        raise AssertionError(judged(path))


@pytest.mark.parametrize("judge", [npz.judge, npz.judge_array, safetensors.judge, torch.judge, sqlite.judge])
def test_no_rubbish_raises(judge: object, tmp_path: Path) -> None:
    assert callable(judge)
    path = tmp_path / "rubbish"
    for content in (b"", b"PK", b"\x80\x02", b"PK\x05\x06" + bytes(18), *(each[:99] for each in GOOD.values())):
        path.write_bytes(content + bytes(50))
        assert judge(path) is None or isinstance(judge(path), str)


# SQLite


@pytest.fixture
def database(tmp_path: Path) -> Iterator[tuple[Path, sqlite3.Connection]]:
    """A database with half of its rows in the write-ahead log, and the connection that wrote them."""
    path = tmp_path / "odd ? # % name.db"
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE t (x)")
        writer.executemany("INSERT INTO t VALUES (?)", [(os.urandom(100),) for _ in range(1000)])
        writer.commit()
        yield path, writer


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as reader:
        return int(reader.execute("SELECT count(*) FROM t").fetchone()[0])


def test_the_log_is_brought_into_the_database(database: tuple[Path, sqlite3.Connection], tmp_path: Path) -> None:
    path, _ = database
    assert path.with_name(f"{path.name}-wal").stat().st_size > 0
    assert judged(path) is None
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    assert rows(copy) == 1000


def test_a_database_in_use_is_turned_down(
    database: tuple[Path, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, writer = database
    monkeypatch.setattr(sqlite, "PATIENCE", 0.1)
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM t").fetchone()
        writer.execute("INSERT INTO t VALUES (1)")
        writer.commit()
        with pytest.raises(AssertionError, match=r"in use|locked"):
            raise AssertionError(rrmove_prepare(rrmove.Source.of(path)))


def test_what_was_written_after_it_was_prepared_is_seen(database: tuple[Path, sqlite3.Connection]) -> None:
    path, writer = database
    assert rrmove_prepare(rrmove.Source.of(path)) is None
    writer.execute("INSERT INTO t VALUES (1)")
    writer.commit()
    assert "written to meanwhile" in str(rrmove_validate(rrmove.Source.of(path)))


def test_a_broken_database_is_turned_down(tmp_path: Path) -> None:
    path = tmp_path / "broken.bin"
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("CREATE TABLE t (x)")
        writer.executemany("INSERT INTO t VALUES (?)", [(os.urandom(100),) for _ in range(1000)])
        writer.commit()
    assert judged(path) is None
    content = bytearray(path.read_bytes())
    content[8192 : 8192 + 64] = os.urandom(64)
    path.write_bytes(content)
    assert "integrity_check says" in str(judged(path)) or "does not open" in str(judged(path))
    path.write_bytes(content[:9000])
    assert judged(path) is not None


# In real moves


def test_in_real_moves(tmp_path: Path, database: tuple[Path, sqlite3.Connection]) -> None:
    path, _ = database
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    good.write_bytes(NPZ)
    bad.write_bytes(NPZ[:-30])
    with EmbeddedNode() as embedded:
        node = rrmove.Node(name="embedded", ssh=rrmove.SSHSettings(config=embedded.ssh_config))
        rrmove.move_sync(path, node)
        assert rows(embedded.home / path.name) == 1000
        rrmove.move_sync(good, node)
        assert (embedded.home / "good.npz").read_bytes() == NPZ
        with pytest.raises(rrmove.RejectedError, match=r"rrmove-validators.*bad\.npz.*cut short"):
            rrmove.move_sync(bad, node)
        assert not (embedded.home / "bad.npz").exists()
