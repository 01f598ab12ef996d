"""FloorLane: the lane where the node has no python3: a POSIX shell does what the agent would do."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import math
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, ClassVar, cast

from rrmove.errors import RRMoveError, Unusable
from rrmove.session import Body, FilePart, Reply
from rrmove.ssh.armour import floor_armour, shell_line
from rrmove.ssh.calls import Answer, CallLane
from rrmove.ssh.failures import StaleError, explain_operation
from rrmove.ssh.lane import path_among
from rrmove.ssh.tools import Plain, Seen, encode_word, errno_of, free_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from rrmove.model import Node
    from rrmove.ssh.channel import Channel, Open

PART, JOURNAL, BAD = ".rrmove-part", ".rrmove-journal", ".rrmove-bad"  # as the agent names them
STEM = 200  # bytes of the target's name in the part's; both agent and floor, so that they share parts
READ_BACK = 1 << 20  # bytes fetched at a time where the node has no program for SHA-256
LONGEST_FIELD = 1 << 20  # bytes; the longest that the floor sends is a probe's 64 KiB
_EVICTING = 20  # looks at a part's foreign writers after each signal, 50 ms apart, as the agent does
_CUT_SHORT = frozenset({124, 128 + 9, 128 + 15})  # what `timeout` programs end with
_SHA256 = re.compile(r"[0-9a-f]{64}")

# Runs under any login shell, hence one pair of single quotes. The floor's text follows on stdin as
# one line. The second sh is there so that its /proc entry shows RRMOVE_AGENT: no other floor evicts it.
BOOT = """sh -c 'RRMOVE_AGENT=1 exec sh -c "IFS= read -r text && eval \\"\\$(printf %b \\"\\$text\\")\\""'"""


@functools.cache
def floor_text() -> bytes:
    """Give the floor as the line that BOOT reads, without comments and indentation."""
    return shell_line(resources.files("rrmove.ssh").joinpath("floor.sh").read_text("ascii"))


class FloorLane(CallLane):
    """One connection with the shell floor at its far end; see `rrmove.session.Lane` for the contract.

    Operations, arguments, answers and errnos are the agent's, with these limits: everything is
    answered in the order of the calls, one after the other; times are exact to the second where
    the node's `touch` knows no fractions; holes are read like data.
    """

    frame_limit = 1 << 20

    def __init__(
        self, open_channel: Open, node: Node, *, lost: Callable[[RRMoveError], None] | None = None, text: bool = False
    ) -> None:
        self._told: dict[int, list[str]] = {}
        super().__init__(open_channel, node, lost=lost, text=text)

    async def call(self, op: str, /, body: Body = b"", **arguments: object) -> Reply:
        """Ask the floor for one operation and wait for its answer."""
        path = path_among(arguments, op)
        duty = self._OPERATIONS.get(op)
        if duty is None:
            raise self._refused(op, path, "ENOSYS", f"the shell floor does not know {op!r}")
        if op in {"hello", "put", "run"}:
            arguments["body"] = body
        return await duty(self, _Ask(self, op, path), **arguments)

    def _start(self) -> tuple[str, bytes]:
        return BOOT, (floor_armour() if self.text else b"") + floor_text()

    def _refused(self, op: str, path: str, name: str, text: str, **more: object) -> RRMoveError:
        return explain_operation(op, {"errno": name, "text": text, **more}, node=self._node.name, path=path)

    # In the reading thread

    def _field(self, channel: Channel) -> str:
        data = bytearray()
        while (byte := channel.read(1)) != b"\0":
            if not byte:
                raise EOFError("the stream ended in the middle of an answer")
            data += byte
            if len(data) > LONGEST_FIELD:
                raise self._mangled()
        return data.decode("utf-8", "surrogateescape")

    def _hear(self, channel: Channel) -> Answer | None:
        try:
            number, state = int(self._field(channel)), self._field(channel)
            count, length = int(self._field(channel)), int(self._field(channel))
        except ValueError:
            raise self._mangled() from None
        fields = [self._field(channel) for _ in range(count)]
        body = self._take(channel, length)
        if state == "+":
            if number:
                self._told.setdefault(number, []).extend(fields)
            return Answer(0)
        told = self._told.pop(number, [])
        if state == ".":
            return Answer(number, Reply({"said": told + fields}, body))
        if state != "!" or not fields:
            raise self._mangled()
        words = fields[-1].strip()
        name = errno_of(fields[0], words)
        error: dict[str, object] = {"errno": name, "text": words.splitlines()[-1] if words else f"status {fields[0]}"}
        return Answer(number, error=error)

    # What is there

    async def _hello(self, ask: _Ask, body: Body) -> Reply:
        reply = await ask("hello", body=body)
        pid, client, reader, sums, _ = _said(reply)
        return Reply(
            {
                "python": "",
                "pid": int(pid),
                "clean": reply.body == bytes(range(256)),
                "client": client,
                "reader": reader,
                "sum": sums,
            },
            reply.body,
        )

    async def _probe(self, ask: _Ask, asks: Mapping[str, str]) -> Reply:
        # One request each, the next once the last is answered: other calls get in between.
        outputs = {name: _said(await ask("ask", snippet))[0] for name, snippet in asks.items()}
        return Reply({"outputs": outputs})

    async def _reach(self, ask: _Ask, host: str, port: int, timeout: float) -> Reply:  # noqa: ASYNC109  the node's
        status, words = _said(await ask("reach", host, Plain(port), Plain(max(1, math.ceil(timeout)))))
        if status == "0":
            return Reply({"state": "open"})
        if "refused" in words:
            return Reply({"state": "refused"})
        late = int(status) in {*_CUT_SHORT, 28} or "timed out" in words or "timeout" in words
        return Reply({"state": "filtered" if late else "unreachable"})

    async def _run(self, ask: _Ask, argv: Sequence[str], timeout: float, body: Body) -> Reply:  # noqa: ASYNC109
        limit = max(1, math.ceil(timeout))
        reply = await ask("run", Plain(limit), *argv, body=body)
        status, took, errors = _said(reply)
        if int(status) in _CUT_SHORT and int(took) >= limit:
            raise ask.refused("ETIMEDOUT", f"{argv[0]} did not end within {timeout:g} s")
        code = int(status)
        return Reply({"status": 128 - code if code > 128 else code, "errors": errors}, reply.body)

    # The landing

    async def _locate(  # noqa: PLR0913, PLR0917  the agent's arguments
        self,
        ask: _Ask,
        destination: str,
        name: str,
        key: str,
        size: int | None = None,
        need: int = 0,
        note: Mapping[str, object] | None = None,
    ) -> Reply:
        said = _said(await ask("where", destination, name))[0]
        target = "/" + os.path.normpath(said).lstrip("/")  # noqa: ASYNC240  no disk is asked
        directory, _, last = target.rpartition("/")
        directory = directory or "/"
        base = os.fsencode(last)[:STEM].decode("utf-8", "surrogateescape")
        stem = os.path.join(directory, f".{base}.{key}")  # noqa: PTH118  a path over there
        room, there, part = await asyncio.gather(
            ask("room", directory), self._seen(ask, target), self._seen(ask, stem + PART)
        )
        nearest, writable, listing = _said(room)
        found: dict[str, object] = {
            "target": target,
            "part": stem + PART,
            "journal": stem + JOURNAL,
            "free": free_bytes(listing) or 0,
            "writable": bool(writable),
            "directory": directory,
            "nearest": nearest,
            "size": None,
            "kind": None,
            "part_size": part.size if part else None,
            "held": part.held if part else 0,
        }
        if there:
            found |= {"size": there.size, "mode": stat.S_IMODE(there.mode)}
            kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory"}
            found["kind"] = kinds.get(stat.S_IFMT(there.mode), "other")
            if there.mtime_ns is not None:
                found["mtime_ns"] = there.mtime_ns
        if size is not None and found["kind"] in {None, "file"} and found["size"] != size:
            need = max(0, need - (part.held if part else 0))
            opened = await self._open(ask, stem + PART, stem + JOURNAL, note, size, need)
            found["opened"] = dict(opened.fields)
        return Reply(found)

    async def _seen(self, ask: _Ask, path: str) -> Seen | None:
        try:
            return Seen.of(_said(await ask("look", path))[0])
        except StaleError as error:
            if error.name != "ENOENT":
                raise
            return None

    async def _open(  # noqa: PLR0913, PLR0917  the agent's arguments
        self, ask: _Ask, part: str, journal: str, note: Mapping[str, object] | None, size: int, need: int
    ) -> Reply:
        line, listing = _said(await ask("make", part))
        seen, free = Seen.of(line), free_bytes(listing)
        if free is not None and need > free:
            if not seen.size:
                await ask("remove", part)
            raise ask.refused("ENOSPC", "No space left on device", need=need, free=free)
        ino = seen.ino
        if not seen.size or ino.endswith("-"):
            await ask("note", journal, json.dumps({**(note or {}), "nonce": secrets.token_hex(8)}))
            ino = Seen.of(_said(await ask("look", part))[0]).ino
        if seen.size != size:
            await ask("cut", part, Plain(size))
        return Reply({"ino": ino, "held": seen.held, "fresh": not seen.size})

    async def _put(self, ask: _Ask, part: str, at: int, body: Body) -> Reply:
        await ask("put", part, Plain(at), body=body)
        return Reply()

    async def _hash(self, ask: _Ask, path: str, spans: Sequence[Sequence[int]]) -> Reply:
        try:
            return await self._digests(ask, path, spans)
        except StaleError as error:
            if error.name != "ENOENT":
                raise
            return Reply({"ino": None, "size": None, "digests": [None] * len(spans)})

    async def _digests(self, ask: _Ask, path: str, spans: Sequence[Sequence[int]]) -> Reply:
        numbers = [Plain(number) for span in spans for number in span]
        try:
            line, *digests = _said(await ask("hash", path, *numbers))
        except Unusable:  # no program for it over there
            return await self._read_back(ask, path, spans)
        for digest in digests:
            if digest != "-" and not _SHA256.fullmatch(digest):
                raise ask.refused("EIO", digest)
        seen = Seen.of(line)
        return Reply(
            {
                "ino": seen.ino,
                "size": seen.size,
                "held": seen.held,
                "digests": [None if d == "-" else d for d in digests],
            }
        )

    async def _read_back(self, ask: _Ask, path: str, spans: Sequence[Sequence[int]]) -> Reply:
        """Hash on our side what the node sends back: right, but every byte crosses the link again."""
        seen = Seen.of(_said(await ask("look", path))[0])
        digests: list[str | None] = []
        for start, length in spans:
            sha, at = hashlib.sha256(), start
            while at < start + length <= seen.size:
                piece = (await ask("get", path, Plain(at), Plain(min(READ_BACK, start + length - at)))).body
                if not piece:
                    break
                sha.update(piece)
                at += len(piece)
            digests.append(sha.hexdigest() if at == start + length <= seen.size else None)
        return Reply({"ino": seen.ino, "size": seen.size, "held": seen.held, "digests": digests})

    async def _get(self, ask: _Ask, path: str, at: int, length: int) -> Reply:
        return Reply(body=(await ask("get", path, Plain(at), Plain(min(length, 8 << 20)))).body)

    async def _trim(self, ask: _Ask, part: str, size: int) -> Reply:
        await ask("cut", part, Plain(size))
        return Reply()

    async def _evict(self, ask: _Ask, part: str) -> Reply:
        ended: list[int] = []
        for name in ("TERM", "KILL"):
            for _ in range(_EVICTING):
                told = _said(await ask("holders", part))
                foreign = [pid for pid, whose in zip(told[::2], told[1::2], strict=True) if whose == "foreign"]
                if not foreign:
                    await self._shut_out(ask, part.removesuffix(PART) + JOURNAL)
                    return Reply({"ended": ended})
                ended += map(int, _said(await ask("signal", Plain(name), *map(Plain, foreign))))
                await asyncio.sleep(0.05)
        raise ask.refused("EBUSY", "another process keeps writing to the part file")

    @staticmethod
    async def _shut_out(ask: _Ask, journal: str) -> None:
        """Let no data server write any more, as the agent does; there is no lock for it in a shell."""
        try:
            note = (await ask("get", journal, Plain(0), Plain(LONGEST_FIELD))).body
        except StaleError as error:
            if error.name != "ENOENT":
                raise
            return
        first, line, _ = note.partition(b"\n")
        if line:
            await ask("cut", journal, Plain(len(first)))

    async def _commit(  # noqa: PLR0913, PLR0917  as many as the agent's has
        self,
        ask: _Ask,
        part: str,
        journal: str,
        target: str,
        size: int,
        ino: str,
        mode: int,
        mtime_ns: int,
        check: Sequence[tuple[int, int, str]],
    ) -> Reply:
        if check:
            reply = await self._hash(ask, part, [item[:2] for item in check])
            digests = cast("list[str | None]", reply.fields["digests"])
            wrong = [item[0] for item, digest in zip(check, digests, strict=True) if digest != item[2]]
            if reply.fields["ino"] == ino and wrong:
                raise ask.refused("EBADMSG", "the part file does not match", wrong=wrong)
        seconds, nanoseconds = divmod(mtime_ns, 10**9)
        stamp = time.strftime("%Y%m%d%H%M.%S", time.gmtime(seconds))
        moment = f"{seconds}.{nanoseconds:09d}"
        await ask("commit", part, journal, target, *map(Plain, (size, ino, f"{mode & 0o777:03o}", moment, stamp)))
        return Reply({"target": target})

    async def _quarantine(self, ask: _Ask, part: str, journal: str) -> Reply:
        bad = part.removesuffix(PART) + BAD
        await ask("move", part, bad)
        await ask("remove", journal)
        return Reply({"path": bad})

    async def _sweep(self, ask: _Ask, directories: Sequence[str], older_than: float, depth: int) -> Reply:
        removed: list[str] = []
        kept: list[str] = []
        now = int(_said(await ask("now"))[0])
        for start in directories:
            found = _said(await ask("find", start, Plain(depth + 1)))
            for path in sorted(found, key=lambda path: path.endswith(JOURNAL)):  # a journal stays with its part
                part = path.removesuffix(JOURNAL) + PART
                if part != path and part in found and part not in removed:
                    continue
                seen = await self._seen(ask, path)
                if seen is None or seen.mtime_ns is None or now - seen.mtime_ns / 1e9 < older_than:
                    continue
                if _said(await ask("holders", path)):
                    kept.append(path)
                else:
                    await ask("remove", path)
                    removed.append(path)
        return Reply({"removed": removed, "kept": kept})

    _OPERATIONS: ClassVar[Mapping[str, Callable[..., Awaitable[Reply]]]] = {
        "hello": _hello,
        "probe": _probe,
        "reach": _reach,
        "run": _run,
        "locate": _locate,
        "open": _open,
        "put": _put,
        "hash": _hash,
        "get": _get,
        "trim": _trim,
        "evict": _evict,
        "commit": _commit,
        "quarantine": _quarantine,
        "sweep": _sweep,
    }


@dataclass(frozen=True, slots=True)
class _Ask:
    """One caller's way to the floor: what it asked for and the path in question go with every request."""

    lane: FloorLane
    op: str
    path: str

    async def __call__(self, op: str, *words: str, body: Body = b"") -> Reply:
        length = body.length if isinstance(body, FilePart) else len(body)
        encoded = map(encode_word, words)

        def encode(number: int) -> bytes:
            return (" ".join([op, str(number), str(length), *encoded]) + "\n").encode("ascii")

        return await self.lane._exchange(self.op, self.path, encode, body)  # noqa: SLF001  same room

    def refused(self, name: str, text: str, **more: object) -> RRMoveError:
        return self.lane._refused(self.op, self.path, name, text, **more)  # noqa: SLF001


def _said(reply: Reply) -> list[str]:
    return cast("list[str]", reply.fields["said"])
