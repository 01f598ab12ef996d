"""pytest fixtures for tests that need the lab: `lab` builds one, and skips where it cannot be built."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.lab.cluster import Lab
from tests.lab.profiles import PROVIDERS, Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOOLS = ("ip", "nft", "ss", "tc", "nsenter", "unshare", "sysctl", "ssh", "ssh-keygen")


@cache
def why_not() -> str | None:
    """Return why no lab can be built here, or None."""
    if os.geteuid() != 0:
        return "the lab makes network namespaces: it needs root"
    missing = [tool for tool in _TOOLS if not shutil.which(tool)]
    if not Path("/usr/sbin/sshd").exists():
        missing.append("sshd")
    if missing:
        return f"the lab needs {', '.join(missing)} (Debian: iproute2 nftables openssh-server procps)"
    if not Path("/dev/net/tun").exists():
        return "the lab's cables need /dev/net/tun"
    tried = subprocess.run(["unshare", "-nm", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"the lab may not make namespaces here: {tried.stderr.strip()}"
    return None


needs_lab = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
"""Marks what cannot run without a lab but asks for no `lab` fixture."""


class MakeLab(Protocol):
    """Build a lab of profiles or of the names of PROVIDERS; the same ones again give the same lab."""

    def __call__(self, *nodes: Profile | str, uplink: str | None = None, seed: int = 7) -> Lab:
        """Return the lab, up."""
        ...


@pytest.fixture(scope="session")
def lab() -> Iterator[MakeLab]:
    """Build labs that stay up until the session ends: `lab("nebius", Profile("odd", rtt_ms=5))`.

    A lab is shared by all tests that ask for the same nodes; `wipe` gives a test clean ones.
    """
    if reason := why_not():
        pytest.skip(reason)
    built: dict[tuple[tuple[Profile, ...], str | None, int], Lab] = {}
    with ExitStack() as labs:

        def make(*nodes: Profile | str, uplink: str | None = None, seed: int = 7) -> Lab:
            profiles = tuple(PROVIDERS[node] if isinstance(node, str) else node for node in nodes)
            key = (profiles, uplink, seed)
            if key not in built:
                built[key] = labs.enter_context(Lab(profiles, uplink=uplink, seed=seed))
            return built[key]

        yield make
