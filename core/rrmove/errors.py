"""The errors of rrmove, sorted by what the reader does next.

RRMoveError                 exit 1
├── UsageError              exit 2   the command or the inventory is wrong: mend it
├── PluginError             exit 1   a plugin is broken: its author mends it
├── NoRouteError            exit 3   no transport can serve; carries the refusals
├── IntegrityError          exit 4   what arrived is not what was sent, again and again
├── RejectedError           exit 5   a validator turned the file down, or could not judge it
└── TransportError          exit 1   moving failed
    ├── Transient           the same transport may be tried again
    ├── Unusable            this transport cannot serve here: the next one
    └── Fatal               no transport helps: disk full, permission, authentication, host key
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rrmove.model import Outcome, Refusal


class RRMoveError(Exception):
    """Say what went wrong, where, and what to do about it.

    `what` is a clause without a full stop; `node` the node's name; `tried` what was attempted;
    `remedy` a sentence that says the next step. `outcome` is set by `move()` before it raises.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        node: str | None = None,
        tried: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.node = node
        self.tried = tried
        self.remedy = remedy
        self.outcome: Outcome | None = None

    def __str__(self) -> str:
        head = f"{self.node}: {self.what}" if self.node else self.what
        tried = f" (tried: {self.tried})" if self.tried else ""
        remedy = f". {self.remedy}" if self.remedy else ""
        return f"{head}{tried}{remedy}"


class UsageError(RRMoveError):
    """The request, the command line or the inventory is wrong; nothing was attempted."""

    exit_code = 2


class PluginError(RRMoveError):
    """A plugin could not be loaded or broke its contract."""


class NoRouteError(RRMoveError):
    """No transport can serve this request; `refusals` says why, for each."""

    exit_code = 3

    def __init__(
        self,
        what: str,
        *,
        refusals: Sequence[Refusal] = (),
        node: str | None = None,
        tried: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what, node=node, tried=tried, remedy=remedy)
        self.refusals = tuple(refusals)


class IntegrityError(RRMoveError):
    """What is on the node is not what was sent, and sending it again did not help."""

    exit_code = 4


class RejectedError(RRMoveError):
    """A validator turned the file down, or could not judge it; nothing was committed."""

    exit_code = 5


class TransportError(RRMoveError):
    """Moving failed; one of its three kinds says whether trying again makes sense."""


class Transient(TransportError):
    """The link broke or the node was busy: the same transport may be tried again."""


class Unusable(TransportError):
    """This transport cannot serve on this node: try the next one."""


class Fatal(TransportError):
    """No transport helps: disk full, permission denied, authentication refused, unknown host key."""


def foremost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Find the one error of a group that is worth raising: a cause rather than its consequences."""
    errors = [foremost(error) if isinstance(error, BaseExceptionGroup) else error for error in group.exceptions]
    return next((error for error in errors if isinstance(error, Fatal | UsageError | IntegrityError)), errors[0])
