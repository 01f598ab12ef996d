"""fetch joins the suite of the contract; it moves URLs, so that they are what it is given."""

from __future__ import annotations

import pytest

from rrmove.testing import TransportSuite
from rrmove_plugins.fetch import Fetch


class TestFetch(TransportSuite):
    """All of it."""

    @pytest.fixture
    def transport(self) -> Fetch:
        return Fetch()
