"""What the tests of torrent share: what this machine's python3 has, which embedded nodes use, too."""

from __future__ import annotations

import functools
import shutil
import subprocess


@functools.cache
def node_has_libtorrent() -> bool:
    """Tell whether the python3 that embedded nodes find has libtorrent."""
    python = shutil.which("python3", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    return python is not None and not subprocess.run([python, "-I", "-c", "import libtorrent"], check=False).returncode
