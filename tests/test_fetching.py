"""URLs as sources, over real HTTP: whole or not at all, continued where that can be, and clear ends."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import ipaddress
import os
import shutil
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

import rrmove
from rrmove import web as looking
from rrmove.errors import Fatal, IntegrityError, RRMoveError, TransportError, UsageError
from rrmove.events import AttemptFailed, AttemptStarted, Event, Progressed
from rrmove.lease import Lease, LeaseLost
from rrmove.model import Node, Outcome, Remote, Source, SSHSettings, shown_url
from rrmove.remote import read_ledger
from rrmove.testing import EmbeddedNode, Faults
from tests.plugins.moves import until
from tests.ssh.local import processes_with
from tests.web import OLD, Page, Web

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("own_experience"),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here"),
]

MB = 1_000_000
GRAIN = 2 << 20
WAYS = ("fetch", "relay")
DATA = os.urandom(12 * MB)
SHA256 = hashlib.sha256(DATA).hexdigest()


@dataclass
class Here:
    """A node, a web server, and moves between them."""

    node: EmbeddedNode
    web: Web

    async def move(self, url: str, *ways: str, **wishes: Any) -> Outcome:
        """Move what a URL names to the node's home."""
        return await rrmove.move(url, self.target, only=ways, **wishes)

    @property
    def target(self) -> Node:
        """The node, as rrmove knows it."""
        return Node(name="embedded", ssh=SSHSettings(host="embedded", config=self.node.ssh_config))

    def page(self, path: str = "/model.pth", **how: Any) -> str:
        """Serve a page and give its URL."""
        self.web.pages[path] = Page(**{"data": DATA, **how})
        return self.web.url(path)

    def names(self) -> list[str]:
        """Everything in the node's home."""
        return sorted(path.name for path in self.node.home.iterdir())

    def arrived(self, data: bytes = DATA, name: str = "model.pth") -> bool:
        """Tell whether the file stands there, whole, and nothing of ours beside it."""
        return self.names() == [name] and (self.node.home / name).read_bytes() == data


@pytest.fixture(scope="module")
def shared() -> Iterator[Here]:
    with EmbeddedNode() as node, Web() as web:
        yield Here(node, web)


@pytest.fixture
def here(shared: Here) -> Here:
    """The node, empty."""
    for path in shared.node.home.iterdir():
        path.unlink()
    shared.web.pages.clear()
    shared.web.seen.clear()
    shared.web.cut = 0
    return shared


def nothing_runs(here: Here) -> bool:
    return not processes_with(str(here.node.home)) and not list(here.node.temporary.glob("rrmove-*/asked"))


# What arrives


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("how", "verified"),
    [
        ({}, ("received", "length")),
        ({"digest": True}, ("received", "length", "server-sha256")),
        ({"ranges": False}, ("received", "length")),
        ({"etag": None}, ("received", "length")),
        ({"etag": None, "modified": None}, ("received", "length")),
        ({"length": "chunked"}, ("received",)),
        ({"data": b""}, ("length",)),
        ({"data": b"x" * GRAIN}, ("received", "length")),
    ],
    ids=["plain", "digest", "no-ranges", "no-etag", "no-version", "chunked", "empty", "one-chunk"],
)
async def test_a_url_arrives(here: Here, way: str, how: dict[str, Any], verified: tuple[str, ...]) -> None:
    outcome = await here.move(here.page(**how), way)
    assert outcome.ok
    assert here.arrived(how.get("data", DATA))
    assert outcome.verified == verified
    assert (outcome.unverified is None) == ("server-sha256" in verified)
    assert outcome.request.source.size == len(how.get("data", DATA))
    if how.get("modified", OLD):
        assert (here.node.home / "model.pth").stat().st_mtime == 1748858400
    assert (here.node.home / "model.pth").stat().st_mode & 0o777 == 0o644
    await until(lambda: nothing_runs(here))


async def test_the_node_fetches_and_we_send_next_to_nothing(here: Here) -> None:
    outcome = await here.move(here.page(), "fetch", "relay")
    assert [attempt.transport for attempt in outcome.attempts] == ["fetch"]
    assert outcome.bytes_sent == 0
    assert here.web.sent < len(DATA) * 1.01
    assert sum(seen.range is not None and seen.sent > GRAIN for seen in here.web.seen) > 1  # several connections


@pytest.mark.parametrize(("hidden", "way"), [({"python3"}, "fetch"), ({"python3", "curl"}, "relay")])
async def test_a_node_without_python3_uses_curl_or_gets_it_through_us(here: Here, hidden: set[str], way: str) -> None:
    with EmbeddedNode(faults=Faults(hidden_tools=frozenset(hidden))) as node:
        bare = Here(node, here.web)
        url = here.page(login="me:s3cret").replace("//", "//me:s3cret@")
        preview = await rrmove.preview(url, bare.target)
        assert [step.transport for step in preview.plan.steps] == (["fetch", "relay"] if way == "fetch" else ["relay"])
        outcome = await bare.move(url, sha256=SHA256)
        assert [attempt.transport for attempt in outcome.attempts] == [way]
        assert outcome.verified == ("received", "length", "sha256")
        assert bare.arrived()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"status": 404}, "404"),
        ({"moved": "/model.pth"}, "redirects too often"),
        ({"next": Page(DATA, etag='"two"'), "after": 1}, "was changed"),
    ],
)
async def test_the_ends_that_curl_comes_to(here: Here, how: dict[str, Any], words: str) -> None:
    with EmbeddedNode(faults=Faults(hidden_tools=frozenset({"python3"}))) as node:
        bare = Here(node, here.web)
        with pytest.raises(TransportError, match=words):
            await bare.move(here.page(**how), "fetch")
        assert "model.pth" not in bare.names()


async def test_the_plan_prefers_the_node_and_local_files_know_nothing_of_it(here: Here, tmp_path: Path) -> None:
    preview = await rrmove.preview(here.page(data=b"small"), here.target)
    ways = [step.transport for step in preview.plan.steps]
    assert ways.index("fetch") < ways.index("relay")
    assert ways[-1] == "relay"
    assert "chunked" not in ways
    assert preview.missing == 5
    assert preview.digest == ""
    assert here.names() == []
    local = tmp_path / "model.pth"
    local.write_bytes(b"small")
    local_plan = (await rrmove.preview(local, here.target)).plan
    assert {"fetch", "relay"}.isdisjoint(
        [*(step.transport for step in local_plan.steps), *(no.transport for no in local_plan.refusals)]
    )


# What is verified


@pytest.mark.parametrize("way", WAYS)
async def test_a_digest_is_checked_and_nothing_of_a_wrong_one_is_committed(here: Here, way: str) -> None:
    (here.node.home / "model.pth").write_bytes(b"old")
    url = here.page()
    with pytest.raises(IntegrityError, match=f"SHA-256 {SHA256}.*not the one that was asked for") as raised:
        await here.move(url, way, sha256="0" * 64)
    assert raised.value.exit_code == 4
    assert raised.value.outcome is not None
    assert raised.value.outcome.digest is None
    assert raised.value.outcome.verified == ()
    assert (here.node.home / "model.pth").read_bytes() == b"old"
    sent = here.web.sent
    outcome = await here.move(url, way, sha256=SHA256)  # it was but the digest: what has arrived counts
    assert outcome.digest == f"sha256:{SHA256}"
    assert here.web.sent - sent < 100
    assert here.arrived()


async def test_a_server_that_contradicts_its_own_digest_is_not_believed(here: Here) -> None:
    url = here.page(digest=True)
    page = here.web.pages["/model.pth"]
    page.next, page.after = Page(DATA[::-1]), 1  # the same version, it says
    with pytest.raises(IntegrityError, match="not the one that the server gives"):
        await here.move(url)
    assert "model.pth" not in here.names()


async def test_what_is_there_is_not_fetched_again_where_a_digest_says_so(here: Here) -> None:
    url = here.page()
    (here.node.home / "model.pth").write_bytes(DATA)
    outcome = await here.move(url, sha256=SHA256)
    assert outcome.ok
    assert outcome.attempts == ()
    assert outcome.verified == ("length", "sha256")
    assert here.web.sent < 100
    (here.node.home / "model.pth").write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    assert (await here.move(url, sha256=SHA256)).attempts
    assert here.arrived()


async def test_what_the_disk_altered_is_fetched_again(here: Here) -> None:
    """The ledger has what came over the wire: bytes that are others on the disk are missing."""
    url = here.page()
    task = asyncio.create_task(here.move(url, "fetch", limit_rate=8 * MB))
    await until(lambda: here.web.sent > 7 * MB)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (part,) = here.node.home.glob(".*part")
    with part.open("r+b") as file:
        file.write(b"altered")
    assert (await here.move(url)).ok
    assert here.arrived()


async def test_an_answer_to_a_commit_that_is_lost_is_no_loss(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is compared with the ledger then: nobody has another digest of it."""
    from rrmove.errors import Transient
    from rrmove.ssh.lane import AgentLane

    call, lost = AgentLane.call, list[str]()

    async def once(self: AgentLane, op: str, /, body: Any = b"", **arguments: object) -> Any:
        reply = await call(self, op, body, **arguments)
        if op == "commit" and not lost:
            lost.append(op)
            raise Transient("the connection was lost", node="embedded")
        return reply

    monkeypatch.setattr(AgentLane, "call", once)
    outcome = await here.move(here.page())
    assert lost
    assert outcome.ok
    assert len(outcome.attempts) == 1
    assert here.web.sent < len(DATA) * 1.01
    assert here.arrived()


# Continued, or begun anew


@pytest.mark.parametrize("way", WAYS)
async def test_answers_that_are_cut_are_continued(here: Here, way: str) -> None:
    outcome = await here.move(here.page(cut=3 * MB // 2 if way == "relay" else 5 * MB // 2, cuts=3), way)
    assert here.web.cut > 1
    assert outcome.ok
    assert here.arrived()


async def test_answers_that_are_cut_without_ranges_begin_anew(here: Here) -> None:
    assert (await here.move(here.page(cut=9 * MB, cuts=2, ranges=False), "fetch")).ok
    assert here.web.cut == 2
    assert here.arrived()


@pytest.mark.parametrize("way", WAYS)
async def test_a_repeat_continues(here: Here, way: str) -> None:
    url = here.page()
    seen: list[Event] = []
    task = asyncio.create_task(here.move(url, way, limit_rate=5 * MB, on_event=seen.append))
    await until(lambda: any(isinstance(event, Progressed) and event.durable > 8 * MB for event in seen))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "model.pth" not in here.names()
    await until(lambda: nothing_runs(here))
    there = (await rrmove.preview(url, here.target)).missing
    assert there <= len(DATA) - GRAIN
    before = here.web.sent
    other = "relay" if way == "fetch" else "fetch"
    outcome = await here.move(url, other)  # it does not matter who goes on
    assert outcome.bytes_reused >= GRAIN
    assert here.web.sent - before <= len(DATA) - outcome.bytes_reused + 100
    assert here.arrived()


async def test_a_repeat_without_versions_begins_anew(here: Here) -> None:
    url = here.page(etag=None, modified=None)
    task = asyncio.create_task(here.move(url, "fetch", limit_rate=8 * MB))
    await until(lambda: here.web.sent > 6 * MB)
    assert here.names()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert here.names() == []  # of no use to anybody
    here.page(data=DATA[::-1], etag=None, modified=None)
    outcome = await here.move(url)
    assert outcome.bytes_reused == 0
    assert (here.node.home / "model.pth").read_bytes() == DATA[::-1]


@pytest.mark.parametrize("way", WAYS)
async def test_two_versions_are_never_mixed(here: Here, way: str) -> None:
    url = here.page()
    page = here.web.pages["/model.pth"]
    page.next, page.after = Page(DATA[::-1], etag='"two"'), 2
    with pytest.raises(Fatal, match="was changed on the server") as raised:
        await here.move(url, way)
    assert page.seen > 2
    assert "model.pth" not in here.names()
    assert "Run the same command again" in str(raised.value)
    outcome = await here.move(url, way)
    assert outcome.bytes_reused == 0
    assert (here.node.home / "model.pth").read_bytes() == DATA[::-1]


async def test_connections_to_the_node_that_are_cut_cost_nothing() -> None:
    with EmbeddedNode(faults=Faults(reset_after_seconds=0.8)) as node, Web() as web:
        here = Here(node, web)
        url = here.page(data=os.urandom(24 * MB), rate=2.5 * MB)
        outcome = await here.move(url, "fetch")
        assert node.resets > 0
        assert len(outcome.attempts) == 1
        assert web.sent < 24 * MB * 1.01
        assert here.arrived(web.pages["/model.pth"].data)


async def test_a_rate_limit_holds(here: Here) -> None:
    outcome = await here.move(here.page(data=DATA[: 4 * MB]), "fetch", limit_rate=4 * MB)
    assert outcome.attempts[0].seconds > 0.8


# Clear ends


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"status": 404}, "404"),
        ({"status": 403}, "403"),
        ({"login": "me:secret"}, "401"),
        ({"moved": "/model.pth"}, "redirects too often"),
        ({"moved": "file:///etc/passwd"}, "redirect"),
        ({"length": "close"}, "does not say where the file ends"),
        ({"length": "chunked", "cut": 5 * MB}, "too early|connection failed"),
    ],
)
async def test_what_cannot_be_fetched_ends_clearly(here: Here, how: dict[str, Any], words: str) -> None:
    url = here.page(**how)
    with pytest.raises(TransportError, match=words) as raised:
        await here.move(url, "fetch")
    error = str(raised.value)
    assert "embedded" in error
    assert "/model.pth" in error
    assert raised.value.remedy
    assert "model.pth" not in here.names()
    assert raised.value.outcome is not None
    assert not raised.value.outcome.ok


async def test_what_ends_with_the_connection_is_taken_where_a_digest_proves_it(here: Here) -> None:
    url = here.page(length="close")
    assert (await here.move(url, sha256=SHA256)).verified == ("received", "sha256")
    assert here.arrived()
    (here.node.home / "model.pth").unlink()
    url = here.page(length="close", cut=5 * MB)
    with pytest.raises(IntegrityError):
        await here.move(url, sha256=SHA256)
    assert here.web.cut
    assert "model.pth" not in here.names()


async def test_a_server_that_stalls_is_left(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "PATIENCE", 0.5)
    url = here.page(stall=9 * MB // 4)
    page = here.web.pages["/model.pth"]
    page.next, page.after = replace(page, stall=None), 4
    assert (await here.move(url)).ok
    assert page.seen > 4
    assert here.arrived()


async def test_nobody_there(here: Here) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(TransportError, match="refused"):
        await here.move(f"http://127.0.0.1:{port}/model.pth")
    with pytest.raises(TransportError, match=r"nowhere\.invalid.*name cannot be resolved"):
        await here.move("http://nowhere.invalid/model.pth")


async def test_a_full_disk_says_so(here: Here) -> None:
    with EmbeddedNode(faults=Faults(disk_bytes=5 * MB)) as node:
        full = Here(node, here.web)
        with pytest.raises(Fatal, match=r"full|fit|large"):
            await full.move(here.page())
        assert "model.pth" not in full.names()


async def test_redirects_are_followed_and_credentials_stay_at_home(here: Here) -> None:
    with Web({"/elsewhere": Page(DATA)}) as other:
        url = here.page(moved=other.url("/elsewhere")).replace("//", "//me:s3cret@")
        assert (await here.move(url)).ok
        assert here.arrived()
        assert all(seen.login for seen in here.web.seen)
        assert not any(seen.login for seen in other.seen)


@pytest.mark.parametrize("way", WAYS)
async def test_credentials_are_used_and_never_seen(here: Here, way: str) -> None:
    url = here.page(login="me:s3cret").replace("//", "//me:s3cret@") + "?token=s4cret"
    words: list[str] = []

    def told(event: Event) -> None:
        words.append(repr(event))
        words.extend(f"s3cret in argv of {pid}" for pid in processes_with("s3cret"))
        words.extend(f"s4cret in argv of {pid}" for pid in processes_with("s4cret"))

    outcome = await here.move(url, way, on_event=told, limit_rate=20 * MB)
    assert here.arrived()
    assert "Progressed" in " ".join(words)
    from rrmove.cli.jsonlines import dumps, outcome_object

    for said in (*words, repr(outcome), dumps(outcome_object(outcome))):
        assert "s3cret" not in said
        assert "s4cret" not in said


class TestCertificates:
    """TLS: whom we do not believe."""

    @staticmethod
    def certificate(folder: Path, *, days: int = 30) -> tuple[Path, Path]:
        """Make a self-signed one for 127.0.0.1."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = dt.datetime.now(dt.UTC)
        end = now + dt.timedelta(days=days)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - dt.timedelta(days=60))
            .not_valid_after(end)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        pem, private = folder / f"{days}.pem", folder / f"{days}.key"
        pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pem, private

    async def test_self_signed_and_expired_ones_are_refused(
        self, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Web({"/model.pth": Page(DATA)}, certificate=self.certificate(tmp_path)) as web:
            with pytest.raises(Fatal, match=r"certificate is refused: self.signed"):
                await here.move(web.url("/model.pth"))
            assert not web.sent
        expired = self.certificate(tmp_path, days=-1)
        monkeypatch.setenv("SSL_CERT_FILE", str(expired[0]))
        with (
            Web({"/model.pth": Page(DATA)}, certificate=expired) as web,
            pytest.raises(Fatal, match=r"certificate is refused:.*(expired|self.signed)"),
        ):
            await here.move(web.url("/model.pth"))

    async def test_a_redirect_away_from_tls_is_refused(
        self, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trusted = self.certificate(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted[0]))  # ours, as the relay looks from here
        with Web({"/model.pth": Page(moved=here.page())}, certificate=trusted) as web:
            with pytest.raises(TransportError, match="from https to http"):
                await here.move(web.url("/model.pth"))
            web.pages["/model.pth"] = Page(DATA)
            assert (await here.move(web.url("/model.pth"), "relay")).ok
        assert here.arrived()


# The lease


class Duty:
    """Text of a duty that says what it is asked."""

    text = """
class Echo:
    def __init__(self, given, folder):
        self.given = given
    def begin(self):
        pass
    def answer(self, question):
        return question + self.given["mark"].encode()
    def end(self):
        open(self.given["mark"], "w").close()
main(Echo)
"""


async def test_a_program_lives_as_long_as_its_lease(here: Here, tmp_path: Path) -> None:
    from rrmove.ssh.login import SSHSession

    mark = tmp_path / "ended"
    async with SSHSession(here.target) as session:
        lease = await Lease.begin(session, Duty.text, {"mark": str(mark)}, seconds=1.0)
        for _ in range(4):
            assert await lease.ask(b"what? ") == b"what? " + str(mark).encode()
            await asyncio.sleep(0.4)
        assert not mark.exists()
        await until(mark.exists, 3)
        with pytest.raises(LeaseLost):
            await lease.ask(b"")
        mark.unlink()
        lease = await Lease.begin(session, Duty.text, {"mark": str(mark)}, seconds=60.0)
        await lease.end()
        await until(mark.exists, 3)
        await lease.end()  # a repeat does nothing
    await until(lambda: nothing_runs(here))


# Tables


@pytest.mark.parametrize(
    ("url", "name", "shown"),
    [
        ("https://host/a/model.pth", "model.pth", "https://host/a/model.pth"),
        ("http://me:pw@host:81/m%20x?sig=1#f", "m x", "http://host:81/m%20x?..."),
        ("HTTPS://[::1]/x", "x", "https://[::1]/x"),
    ],
)
def test_urls(url: str, name: str, shown: str) -> None:
    remote = Source.of(url)
    assert isinstance(remote, Remote)
    assert (remote.name, remote.shown) == (name, shown)
    assert "pw" not in repr(remote)
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "s3://b/x", "https://host/", "https://host", "https://host/a/", "https:///x", "http://h/a b",
     "http://h:x/a", "http://h/%2e%2e", "http://h/a%2Fb", "http://[::1/x"],
)  # fmt: skip
def test_what_is_no_url_to_fetch(url: str) -> None:
    with pytest.raises(UsageError):
        Source.of(url)


A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("", None),
        ("part 2\n\n0 " + A + "\n", None),
        ("part 1\n", (None, {})),
        (f"part 1\n\n0 {A}\n\n1 {B}\n", (None, {0: A, 1: B})),
        (f"part 1\n\n0 {A}\n\n0 {B}\n", (None, {0: B})),
        (f"part 1\n\n0 {A}\n\n1 {B[:-1]}", (None, {0: A})),
        (f"part 1\n\n0 {A}\n\n1 bb\n2 {B}\n", (None, {0: A, 2: B})),
        (f"part 1\n\n0 {A}\n\nnew\n\n1 {B}\n\nend 9\n", (9, {1: B})),
        (f"part 1\n\nend 9\n\nnew\n\n1 {B}\n", (None, {1: B})),
        (f"part 1\n\nend x\n\n-1 {B}\nend\n\nend 5 6\n", (None, {})),
    ],
)
def test_ledgers(text: str, read: object) -> None:
    assert read_ledger(text.encode(), "1") == read


def test_only_errors_of_ours_leave(here: Here) -> None:
    failed: list[Event] = []

    async def go() -> None:
        with pytest.raises(RRMoveError):
            await here.move(here.page(length="close"), on_event=failed.append)

    asyncio.run(go())
    assert [type(event) for event in failed if isinstance(event, AttemptStarted | AttemptFailed)]
