"""What plugin authors test with: an SSH node inside the process, and the faults it and the way to it can have."""

from .faults import Faults
from .node import EmbeddedNode

__all__ = ["EmbeddedNode", "Faults"]
