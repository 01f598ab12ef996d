"""fetch joins the suite of the contract; it moves URLs, so that they are what it is given."""

from __future__ import annotations

from typing import ClassVar

import pytest

from rrmove.testing import TransportSuite
from rrmove_plugins.fetch import Fetch


class TestFetch(TransportSuite):
    """All of it; a sample where no campaign is asked for."""

    SAMPLE: ClassVar[set[str]] = {
        "test_files_of_all_sizes_arrive",
        "test_it_fills_the_holes",
        "test_cancelled_it_leaves_nothing",
        "test_it_goes_on_after_a_cut",
        "test_killed_on_the_node",
        "test_a_full_disk_is_an_error",
        "test_the_source_is_gone",
        "test_the_source_changes_midway",
        "test_it_is_fit_to_be_loaded",
    }

    @pytest.fixture
    def transport(self) -> Fetch:
        return Fetch()
