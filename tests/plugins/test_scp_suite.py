"""scp joins the suite of the contract."""

from __future__ import annotations

import pytest

from rrmove.testing import TransportSuite
from rrmove_plugins.scp import SCP


class TestSCP(TransportSuite):
    """All of it."""

    @pytest.fixture
    def transport(self) -> SCP:
        return SCP()
