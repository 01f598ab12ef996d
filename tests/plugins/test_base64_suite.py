"""base64 joins the suite of the contract."""

from __future__ import annotations

import pytest

from rrmove.testing import TransportSuite
from rrmove_plugins.base64 import Base64


class TestBase64(TransportSuite):
    """All of it."""

    @pytest.fixture
    def transport(self) -> Base64:
        return Base64()
