"""torrent joins the suite of the contract, with each of the clients that a node may have."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, ClassVar

import pytest

from rrmove.testing import TransportSuite
from rrmove_plugins.torrent import Torrent
from tests.plugins.swarm import node_has_libtorrent

if TYPE_CHECKING:
    from collections.abc import Mapping

pytest.importorskip("libtorrent")


@pytest.mark.campaign
@pytest.mark.skipif(shutil.which("aria2c") is None, reason="no aria2c here")
class TestTorrentAria2c(TransportSuite):
    """All of it, with aria2c on the node, which is slow to begin; test_torrent.py has a sample."""

    settings: ClassVar[Mapping[str, object]] = {"torrent.client": "aria2c"}

    @pytest.fixture
    def transport(self) -> Torrent:
        return Torrent()


@pytest.mark.skipif(not node_has_libtorrent(), reason="no python3-libtorrent here")
class TestTorrentLibtorrent(TransportSuite):
    """All of it, with libtorrent on the node; a sample where no campaign is asked for."""

    SAMPLE: ClassVar[set[str]] = {
        "test_it_fills_the_holes",
        "test_cancelled_it_leaves_nothing",
        "test_it_goes_on_after_a_cut",
        "test_killed_on_the_node",
        "test_a_full_disk_is_an_error",
        "test_the_source_changes_midway",
        "test_it_is_fit_to_be_loaded",
    }
    settings: ClassVar[Mapping[str, object]] = {"torrent.client": "libtorrent"}

    @pytest.fixture
    def transport(self) -> Torrent:
        return Torrent()
