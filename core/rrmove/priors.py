"""What is assumed of a link before anything is known of it: one row a provider."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rrmove.model import Node


@dataclass(frozen=True, slots=True)
class Prior:
    """What connections to a provider's nodes are like.

    `life_seconds` and `life_bytes` are the typical life of a connection, None where connections
    are not cut for that reason; `rate` is in bytes a second, None where it is not known.
    """

    life_seconds: float | None = None
    life_bytes: float | None = None
    rate: float | None = None


# Resets after 4 to 8 s (field notes: all providers but Hetzner); the middle of that.
_RESET_SECONDS = 6.0
# 10 MB never fitted into 4 to 8 s where 1 MB always did (field notes: runpod, vast): 16 Mbit/s.
_NARROW_RATE = 2e6

PRIORS: Mapping[str, Prior] = MappingProxyType(
    {
        # scp: 1 MB 4 of 5, 10 MB 1 of 3; 2 MB chunks 5 of 5: cut in the region of 6 MB.
        "nebius": Prior(life_bytes=6e6),
        # scp and rsync: 1 MB ok, 10 MB always reset.
        "runpod": Prior(life_seconds=_RESET_SECONDS, rate=_NARROW_RATE),
        # "Connection drops after ~4-8 s", through an SSH proxy.
        "vast": Prior(life_seconds=_RESET_SECONDS, rate=_NARROW_RATE),
        # scp of 10 MB 1 of 3: a life of 9 MB, a third up or down, gives just that.
        "vultr": Prior(life_bytes=9e6),
        # "Most stable provider": nothing was ever cut.
        "hetzner": Prior(),
    }
)

# A node of which nothing is known. Five of the six providers of the field notes cut connections,
# so a stranger is not trusted with an hour on one connection; but plain machines are the common
# case, so small moves are planned as on a clean link. Ten times the life seen in the field.
UNKNOWN = Prior(life_seconds=60.0)


def prior_of(node: Node) -> Prior:
    """Look up what to assume of a node: by its provider, or by the first word of its name.

    `vast`, `Vast.ai` and a node called `vast-29128352` are the same provider. A provider that is
    not in the table, or none at all, gives `UNKNOWN`.
    """
    for text in (node.provider, node.name):
        prior = PRIORS.get(_first_word(text or ""))
        if prior is not None:
            return prior
    return UNKNOWN


def _first_word(text: str) -> str:
    return re.split(r"[^a-z0-9]", text.strip().lower(), maxsplit=1)[0]
