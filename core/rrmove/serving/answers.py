"""What the server answers besides files: JSON, and what is refused, with the fields of our own messages."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING

from aiohttp import web

from rrmove.errors import RRMoveError

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
AGAIN = {"Retry-After": "1"}  # with 202: the work goes on by itself


class Rejection(RRMoveError):
    """A request is refused: `status` is HTTP's; `more` are fields for programs."""

    def __init__(
        self,
        status: int,
        what: str,
        *,
        remedy: str | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.status = status
        self.headers = dict(headers or {})
        self.more = dict(more or {})


def of_system(error: OSError, doing: str) -> Rejection:
    """Turn what the operating system said into an answer; what is in no list is the server's fault (500)."""
    words = f"{doing}: {error.strerror or error}"
    if error.errno in _NOT_THERE:
        return Rejection(404, words, remedy="See what is there: GET /v1/roots and /v1/files/ROOT/")
    if error.errno in _NOT_ALLOWED:
        return Rejection(403, words, remedy="The user that runs `rrmove serve` needs the permission")
    if error.errno in _FULL:
        return Rejection(507, words, remedy="Make room on the node, then send again: what arrived is kept")
    if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
        return Rejection(503, words, remedy="Try again later, with fewer connections", headers=AGAIN)
    return Rejection(500, words, remedy="Look at the disk of the node")


def as_json(fields: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with JSON; names that are no UTF-8 are escaped, never an error."""
    return web.Response(
        body=json.dumps(fields).encode("ascii") + b"\n",
        status=status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        content_type="application/json",
    )


def refusal(error: Rejection, *, node: str, tried: str) -> web.Response:
    """Answer with what was refused and why, and what to do next."""
    fields = {"what": error.what, "node": node, "tried": tried, "remedy": error.remedy}
    return as_json({"error": fields, **error.more}, status=error.status, headers=error.headers)
