"""Whether a login is one for our own SSH client: what ssh_config asks for that only `ssh` itself can do."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Keywords that `ssh -G` prints and that may differ from ssh's defaults: our client does as they say ...
_HONOURED = (
    "host hostname user port identityfile identitiesonly userknownhostsfile globalknownhostsfile"
    " stricthostkeychecking hostkeyalias"
)
# ... or they mean nothing to a lane: no terminal, no forwarding, no questions, silence watched by ourselves, and where
# no key opens the door (GSSAPI, passwords) or the host key is new, ssh gets its turn.
_WITHOUT_MEANING = (
    "batchmode loglevel logverbose requesttty escapechar enableescapecommandline sendenv hashknownhosts visualhostkey"
    " fingerprinthash updatehostkeys addkeystoagent forwardagent forwardx11 forwardx11trusted forwardx11timeout"
    " xauthlocation exitonforwardfailure clearallforwardings localforward remoteforward dynamicforward permitremoteopen"
    " gatewayports streamlocalbindmask streamlocalbindunlink permitlocalcommand localcommand remotecommand"
    " tcpkeepalive serveraliveinterval serveralivecountmax connecttimeout connectionattempts numberofpasswordprompts"
    " passwordauthentication kbdinteractiveauthentication gssapiauthentication gssapikeyexchange"
    " gssapidelegatecredentials gssapitrustdns gssapirenewalforcesrekey gssapikexalgorithms gssapiclientidentity"
    " gssapiserveridentity controlmaster controlpersist controlpath"
)
_FREE = frozenset(f"{_HONOURED} {_WITHOUT_MEANING}".split())


def only_ssh_can(options: Mapping[str, tuple[str, ...]], default: Mapping[str, tuple[str, ...]]) -> str | None:
    """Name what in a node's options only `ssh` can do; None where our own client can serve.

    Both are as `ssh -G` prints them: the node's, and those of a host that no file says anything
    of. What is not known to be harmless counts, so that a keyword of a future ssh is honoured.
    Looks for a master connection that is there to be used, and for certificates beside the keys.
    """
    for keyword in sorted(options.keys() | default.keys()):
        if keyword not in _FREE and options.get(keyword) != default.get(keyword):
            return keyword
    path = options.get("controlpath", ("none",))[0]
    if path not in {"", "none"} and _is_socket(Path(path)):
        return "controlpath"
    for word in options.get("identityfile", ()):
        if word != "none" and Path(f"{word}-cert.pub").expanduser().exists():
            return "certificatefile"
    return None


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False
