"""The whole contract, as rrmove tests it."""

import pytest
from rrmove_pigeon import Pigeon

from rrmove.testing import TransportSuite


class TestPigeon(TransportSuite):
    """What it does not claim to be able to do is not asked of it."""

    @pytest.fixture
    def transport(self) -> Pigeon:
        """Give the transport under test."""
        return Pigeon()
