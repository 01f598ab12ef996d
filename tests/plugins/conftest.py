"""Nodes and a source (of a module's SIZE) for the tests of transports; a class with a SAMPLE is not run as a whole."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rrmove.testing import EmbeddedNode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def embedded() -> Iterator[EmbeddedNode]:
    with EmbeddedNode() as opened:
        yield opened


@pytest.fixture(scope="module")
def shared() -> Iterator[EmbeddedNode]:
    """One node for the tests that leave it as it was."""
    with EmbeddedNode() as opened:
        yield opened


@pytest.fixture(scope="module")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.bin"
    path.write_bytes(os.urandom(request.module.SIZE))
    return path


@pytest.fixture(autouse=True)
def sampled(request: pytest.FixtureRequest) -> None:
    """Run the SAMPLE of a class that has one, and all of it in a campaign."""
    sample = getattr(request.cls, "SAMPLE", None)
    if sample is not None and request.function.__name__ not in sample and not request.config.getoption("--campaign"):
        pytest.skip("a campaign: runs with --campaign")
