"""chunked joins the suite of the contract."""

from __future__ import annotations

import pytest

from rrmove.testing import TransportSuite
from rrmove_plugins.chunked import Chunked


class TestChunked(TransportSuite):
    """All of it."""

    @pytest.fixture
    def transport(self) -> Chunked:
        return Chunked()
