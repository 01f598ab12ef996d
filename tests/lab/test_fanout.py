"""One file to many nodes that share an uplink: it is fair, and nobody waits for who is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.moving import GRAIN, LOGIN, MB, fresh, make, parts, rrmove
from tests.lab.profiles import Profile

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.fixtures import MakeLab

pytestmark = pytest.mark.lab

UPLINK = "160mbit"
GOOD = tuple(f"rack-{number}" for number in range(8))
NODES = (*(Profile(name, rtt_ms=10) for name in GOOD), Profile("tiny", data_mb=2))


def test_eight_nodes_share_an_uplink_fairly_and_a_black_hole_and_a_full_disk_hold_up_nobody(
    lab: MakeLab, tmp_path: Path
) -> None:
    here = fresh(lab(*NODES, uplink=UPLINK))
    source = make(tmp_path / "model.bin", 12 * MB)

    # All eight: as fast as each other
    all_eight = [f"{name}:/data/" for name in GOOD]
    before = sum(here.bytes_to(name) for name in GOOD)
    done = rrmove(here, "auto", "--json", source.path, *all_eight, timeout=60)
    assert done.code == 0, done.err
    took = [each["seconds"] for each in done.last["nodes"]]
    assert max(took) / min(took) <= 1.3
    assert sum(here.bytes_to(name) for name in GOOD) - before <= 8 * 1.1 * (source.size + LOGIN)
    assert {here.sha256(name, "/data/model.bin") for name in GOOD} == {source.digest}

    # Six that are well, one that swallows all packets, one that is full; others use this machine, too: three rounds
    hole, *six = GOOD[:7]
    for _ in range(3):
        here.wipe()
        done = rrmove(here, "auto", "--json", source.path, *[f"{name}:/data/" for name in six], timeout=60)
        assert done.code == 0, done.err
        alone = max(each["seconds"] for each in done.last["nodes"])
        here.wipe()
        here.filter_ports(hole, ssh=False)
        connects = here.connects(hole)
        targets = [f"{name}:/data/" for name in (hole, "tiny", *six)]
        done = rrmove(here, "auto", "--json", source.path, *targets, timeout=90)
        here.filter_ports(hole)
        assert done.code == 1
        assert here.connects(hole) > connects
        ends = {each["node"]: each for each in done.last["nodes"]}
        assert {name for name, end in ends.items() if not end["ok"]} == {hole, "tiny"}
        assert f"rrmove: {hole}: " in done.err
        assert "rrmove: tiny: the disk is full" in done.err
        for name in six:
            assert here.sha256(name, "/data/model.bin") == source.digest
            assert not parts(here, name)
        if (beside := max(ends[name]["seconds"] for name in six)) <= 1.1 * alone:
            break
    assert beside <= 1.1 * alone

    # The same again: nothing is sent where it is, all of it where it is not
    counts = {name: here.bytes_to(name) for name in GOOD}
    again = rrmove(here, "auto", "--json", source.path, *[f"{name}:/data/" for name in GOOD[:7]], timeout=60)
    assert again.code == 0, again.err
    sent = {each["node"]: each["bytes_sent"] for each in again.last["nodes"]}
    assert {sent[name] for name in six} == {0}
    assert sent[hole] >= source.size
    assert all(here.bytes_to(name) - counts[name] < LOGIN + GRAIN // 8 for name in six)
    assert here.sha256(hole, "/data/model.bin") == source.digest
