"""rrmove-prometheus, installed beside rrmove as its users have it, in real moves."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pytest
from rrmove_prometheus import add, labels, read, rrmove_event, written

import rrmove
from rrmove.testing import EmbeddedNode, Faults

if TYPE_CHECKING:
    from pathlib import Path


def test_moves_are_counted_over_several_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, file = tmp_path / "model.pth", tmp_path / "rrmove.prom"
    source.write_bytes(os.urandom(5_000_000))
    monkeypatch.setenv("RRMOVE_PROMETHEUS_FILE", str(file))
    with EmbeddedNode(Faults(reset_after_bytes=2_500_000)) as embedded:
        node = rrmove.Node(name="embedded", ssh=rrmove.SSHSettings(config=embedded.ssh_config))
        for _ in range(2):
            rrmove.move_sync(source, node, only=("chunked",))
        embedded.faults = Faults(reject_auth=True)
        with pytest.raises(rrmove.Fatal):
            rrmove.move_sync(source, node, only=("chunked",))
    samples = read(file.read_text())
    assert samples["rrmove_moves_total", labels(node="embedded", result="moved")] == 1
    assert samples["rrmove_moves_total", labels(node="embedded", result="there")] == 1
    assert samples["rrmove_moves_total", labels(node="embedded", result="failed")] == 1
    assert samples["rrmove_delivered_bytes_total", labels(node="embedded")] == 5_000_000
    assert samples["rrmove_sent_bytes_total", labels(node="embedded")] >= 5_000_000, samples
    assert samples["rrmove_connections_lost_total", labels(node="embedded", transport="chunked")] >= 1
    assert samples["rrmove_last_success_timestamp_seconds", labels(node="embedded")] > 1.7e9
    assert sorted(path.name for path in tmp_path.iterdir() if "rrmove" in path.name) == [file.name, f"{file.name}.lock"]


SAMPLES = {
    ("rrmove_moves_total", labels(node='odd "name"\\\n', result="moved")): 3.0,
    ("rrmove_moves_total", labels(node="n", result="failed")): 123456789012.0,
    ("rrmove_move_seconds_total", labels(node="n")): 0.125,
}


def test_what_is_written_is_read_again_and_has_the_formats_head() -> None:
    text = written(SAMPLES)
    assert read(text) == SAMPLES
    assert text.count("# TYPE rrmove_moves_total counter\n") == 1
    assert 'rrmove_moves_total{node="n",result="failed"} 123456789012\n' in text
    assert read("garbage\nother_total{} 1\n") == {}


def test_many_at_once_lose_no_count(tmp_path: Path) -> None:
    file = tmp_path / "rrmove.prom"
    one = {("rrmove_moves_total", labels(node="n", result="moved")): 1.0}
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(add, [file] * 200, [one] * 200))
    assert list(read(file.read_text()).values()) == [200.0]


def test_without_the_variable_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RRMOVE_PROMETHEUS_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    rrmove_event(rrmove.ConnectionLost("node", "chunked", "reset", 1.0, 2))
    assert not list(tmp_path.iterdir())
