"""What authors of transports test with: an SSH node inside the process, its faults, and the suite of the contract.

Names are loaded when they are first used: the node wants paramiko, the suite pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench import Bench, Result
    from .faults import Faults
    from .node import EmbeddedNode
    from .suite import TransportSuite

_HOME = {
    "Bench": "bench",
    "EmbeddedNode": "node",
    "Faults": "faults",
    "Result": "bench",
    "TransportSuite": "suite",
}

__all__ = ["Bench", "EmbeddedNode", "Faults", "Result", "TransportSuite"]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
