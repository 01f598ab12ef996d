"""rrmove: get a file onto a flaky cluster node, whole and verified.

The public face: all that embedders and authors of transports import. Names are loaded when they
are first used, so that `import rrmove` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rrmove.care import clean, probe_node
    from rrmove.errors import (
        Fatal,
        IntegrityError,
        NoRouteError,
        PluginError,
        RejectedError,
        RRMoveError,
        Transient,
        TransportError,
        Unusable,
        UsageError,
        foremost,
    )
    from rrmove.events import (
        AttemptFailed,
        AttemptStarted,
        Committed,
        ConnectionLost,
        Event,
        Finished,
        LeftBehind,
        Planned,
        Probed,
        Progressed,
        Reached,
        Unshared,
        Verified,
        Waiting,
    )
    from rrmove.fanout import Slots, distribute
    from rrmove.hooks import hookimpl
    from rrmove.inventory import Inventory, load_inventory
    from rrmove.knowledge import Knowledge, Life
    from rrmove.lease import Lease, LeaseLost
    from rrmove.manifest import Manifest, Range, merged, total
    from rrmove.model import (
        Address,
        Attempt,
        Estimate,
        Limit,
        Node,
        Offer,
        Options,
        Outcome,
        Plan,
        Ports,
        Refusal,
        Remote,
        Request,
        Settings,
        Source,
        SSHSettings,
        Step,
    )
    from rrmove.moving import Preview, Wishes, move, move_sync, preview, watch
    from rrmove.oneshot.endpoint import Endpoint
    from rrmove.oneshot.here import Serving, serve_once
    from rrmove.oneshot.there import serve_there
    from rrmove.probe import CLEAN, CLIENT, DHT, PLACES, PORTS, REACH, RTT, SPACE, SYSTEM, TOOLS, Facts, Probe
    from rrmove.program import Ended, run_program
    from rrmove.remote import RemotePart
    from rrmove.session import FilePart, Lane, Reply, Session
    from rrmove.ssh.failures import NoLogin
    from rrmove.transport import API_VERSION, Capabilities, Giver, Job, Landing, Limiter, Siblings, Transport
    from rrmove.units import Rate, Size

_HOMES = {
    "care": ("clean", "probe_node"),
    "errors": (
        "Fatal",
        "IntegrityError",
        "NoRouteError",
        "PluginError",
        "RRMoveError",
        "RejectedError",
        "Transient",
        "TransportError",
        "Unusable",
        "UsageError",
        "foremost",
    ),
    "events": (
        "AttemptFailed",
        "AttemptStarted",
        "Committed",
        "ConnectionLost",
        "Event",
        "Finished",
        "LeftBehind",
        "Planned",
        "Probed",
        "Progressed",
        "Reached",
        "Unshared",
        "Verified",
        "Waiting",
    ),
    "fanout": ("Slots", "distribute"),
    "hooks": ("hookimpl",),
    "inventory": ("Inventory", "load_inventory"),
    "knowledge": ("Knowledge", "Life"),
    "lease": ("Lease", "LeaseLost"),
    "manifest": ("Manifest", "Range", "merged", "total"),
    "model": (
        "Address",
        "Attempt",
        "Estimate",
        "Limit",
        "Node",
        "Offer",
        "Options",
        "Outcome",
        "Plan",
        "Ports",
        "Refusal",
        "Remote",
        "Request",
        "SSHSettings",
        "Settings",
        "Source",
        "Step",
    ),
    "moving": ("Preview", "Wishes", "move", "move_sync", "preview", "watch"),
    "oneshot.endpoint": ("Endpoint",),
    "oneshot.here": ("Serving", "serve_once"),
    "oneshot.there": ("serve_there",),
    "probe": (
        "CLEAN",
        "CLIENT",
        "DHT",
        "Facts",
        "PLACES",
        "PORTS",
        "Probe",
        "REACH",
        "RTT",
        "SPACE",
        "SYSTEM",
        "TOOLS",
    ),
    "program": ("Ended", "run_program"),
    "remote": ("RemotePart",),
    "session": ("FilePart", "Lane", "Reply", "Session"),
    "ssh.failures": ("NoLogin",),
    "transport": ("API_VERSION", "Capabilities", "Giver", "Job", "Landing", "Limiter", "Siblings", "Transport"),
    "units": ("Rate", "Size"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "API_VERSION",
    "CLEAN",
    "CLIENT",
    "DHT",
    "PLACES",
    "PORTS",
    "REACH",
    "RTT",
    "SPACE",
    "SYSTEM",
    "TOOLS",
    "Address",
    "Attempt",
    "AttemptFailed",
    "AttemptStarted",
    "Capabilities",
    "Committed",
    "ConnectionLost",
    "Ended",
    "Endpoint",
    "Estimate",
    "Event",
    "Facts",
    "Fatal",
    "FilePart",
    "Finished",
    "Giver",
    "IntegrityError",
    "Inventory",
    "Job",
    "Knowledge",
    "Landing",
    "Lane",
    "Lease",
    "LeaseLost",
    "LeftBehind",
    "Life",
    "Limit",
    "Limiter",
    "Manifest",
    "NoLogin",
    "NoRouteError",
    "Node",
    "Offer",
    "Options",
    "Outcome",
    "Plan",
    "Planned",
    "PluginError",
    "Ports",
    "Preview",
    "Probe",
    "Probed",
    "Progressed",
    "RRMoveError",
    "Range",
    "Rate",
    "Reached",
    "Refusal",
    "RejectedError",
    "Remote",
    "RemotePart",
    "Reply",
    "Request",
    "SSHSettings",
    "Serving",
    "Session",
    "Settings",
    "Siblings",
    "Size",
    "Slots",
    "Source",
    "Step",
    "Transient",
    "Transport",
    "TransportError",
    "Unshared",
    "Unusable",
    "UsageError",
    "Verified",
    "Waiting",
    "Wishes",
    "clean",
    "distribute",
    "foremost",
    "hookimpl",
    "load_inventory",
    "merged",
    "move",
    "move_sync",
    "preview",
    "probe_node",
    "run_program",
    "serve_once",
    "serve_there",
    "total",
    "watch",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'rrmove' has no attribute {name!r}")
    # The submodule may have the function's name (rrmove.move): the name means the function.
    value = getattr(import_module(f"rrmove.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
