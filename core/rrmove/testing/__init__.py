"""What authors of transports test with: a node and a web server inside the process, their faults, and the suite.

Names are loaded when they are first used: the node wants paramiko, the suite pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench import Bench, Result
    from .faults import Faults
    from .node import EmbeddedNode
    from .origin import Origin
    from .suite import TransportSuite

_HOME = {
    "Bench": "bench",
    "EmbeddedNode": "node",
    "Faults": "faults",
    "Origin": "origin",
    "Result": "bench",
    "TransportSuite": "suite",
}

__all__ = ["Bench", "EmbeddedNode", "Faults", "Origin", "Result", "TransportSuite"]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
