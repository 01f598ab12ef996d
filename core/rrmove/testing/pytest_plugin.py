"""Fixtures for everyone who has rrmove and pytest: embedded nodes, and what is to go wrong with them.

pytest loads this module in every run (entry point `pytest11`): it imports nothing but pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rrmove.testing import EmbeddedNode, Faults


@pytest.fixture
def rrmove_faults() -> Faults:
    """Give the faults that `rrmove_node` begins with: none. Override it to have some."""
    from rrmove.testing import Faults

    return Faults()


@pytest.fixture
def rrmove_node(rrmove_faults: Faults) -> Iterator[EmbeddedNode]:
    """Give an SSH node inside this process, at `rrmove_node.ssh_config`; its `faults` can be set at any time."""
    from rrmove.testing import EmbeddedNode

    with EmbeddedNode(rrmove_faults) as node:
        yield node


@pytest.fixture
def rrmove_nodes() -> Iterator[Callable[..., EmbeddedNode]]:
    """Give a function that opens nodes: `rrmove_nodes("gpu-3", Faults(rtt=0.08))`; the test's end closes them."""
    from contextlib import ExitStack

    from rrmove.testing import EmbeddedNode, Faults

    with ExitStack() as stack:

        def opened(name: str = "embedded", faults: Faults | None = None) -> EmbeddedNode:
            return stack.enter_context(EmbeddedNode(faults or Faults(), name=name))

        yield opened
