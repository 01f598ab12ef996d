"""http joins the suite of the contract."""

from __future__ import annotations

import pytest

from rrmove.testing import TransportSuite
from rrmove_plugins.http import Http


class TestHttp(TransportSuite):
    """All of it."""

    @pytest.fixture
    def transport(self) -> Http:
        return Http()
