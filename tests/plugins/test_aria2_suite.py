"""aria2 joins the suite of the contract."""

from __future__ import annotations

import pytest

from rrmove.testing import TransportSuite
from rrmove_plugins.aria2 import Aria2


class TestAria2(TransportSuite):
    """All of it."""

    @pytest.fixture
    def transport(self) -> Aria2:
        return Aria2()


class TestAria2FromURLs(TestAria2):
    """All of it once more, with what it claims besides files."""

    source = "url"
