"""A running data server, for all tests of a file: plain, and with TLS where that makes a difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.serving.served import Served

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=["plain", "tls"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve in plain HTTP, and with TLS."""
    with Served(tmp_path_factory.mktemp("served"), plain=request.param == "plain") as served:
        yield served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve in plain HTTP, on loopback."""
    with Served(tmp_path_factory.mktemp("served")) as served:
        yield served
