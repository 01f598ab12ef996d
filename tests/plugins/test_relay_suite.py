"""relay joins the suite of the contract; it moves URLs, so that they are what it is given."""

from __future__ import annotations

import pytest

from rrmove.testing import TransportSuite
from rrmove_plugins.relay import Relay


class TestRelay(TransportSuite):
    """All of it."""

    @pytest.fixture
    def transport(self) -> Relay:
        return Relay()
