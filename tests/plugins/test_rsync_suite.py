"""rsync joins the suite of the contract."""

from __future__ import annotations

import pytest

from rrmove.testing import TransportSuite
from rrmove_plugins.rsync import Rsync


class TestRsync(TransportSuite):
    """All of it."""

    @pytest.fixture
    def transport(self) -> Rsync:
        return Rsync()
