"""aria2 joins the suite of the contract."""

from __future__ import annotations

from typing import ClassVar

import pytest

from rrmove.testing import TransportSuite
from rrmove_plugins.aria2 import Aria2


class TestAria2(TransportSuite):
    """All of it."""

    @pytest.fixture
    def transport(self) -> Aria2:
        return Aria2()


class TestAria2FromURLs(TestAria2):
    """All of it once more, with what it claims besides files; a sample where no campaign is asked for."""

    source = "url"
    SAMPLE: ClassVar[set[str]] = {
        "test_files_of_all_sizes_arrive",
        "test_it_fills_the_holes",
        "test_it_goes_on_after_a_cut",
        "test_the_source_changes_midway",
    }
