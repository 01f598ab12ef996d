"""The suite of the contract: what every transport has to show, by what is found on the node's disk.

    from rrmove.testing import TransportSuite

    class TestMine(TransportSuite):
        @pytest.fixture
        def transport(self):
            return Mine()

It needs no root and takes less than a minute. What a transport does not claim to be able to do
(`capabilities`) is not asked of it. A failure says what to mend.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, ClassVar, Literal

import pytest

from rrmove.testing.bench import Bench
from rrmove.testing.suite.filling import Filling
from rrmove.testing.suite.leaving import Leaving
from rrmove.testing.suite.loading import Loading
from rrmove.testing.suite.surviving import Surviving
from rrmove.testing.verdict import MARK, refusal, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rrmove.testing.node import EmbeddedNode
    from rrmove.transport import Transport

_serving: set[tuple[str, str]] = set()  # who does not refuse what on this machine: asked once, as it takes a login


class TransportSuite(Loading, Filling, Surviving, Leaving):
    """The contract as tests. Join by subclassing, with a fixture `transport` that gives yours.

    `settings` are what the transport is told (`{"mine.port": 0}`); `patience` is how many seconds
    it may go without a byte before it counts as hanging. `source` is what it has to move, of the
    `sources` that it claims: None for the first of them; a second class asks for the other.
    """

    settings: ClassVar[Mapping[str, object]] = {}
    patience: ClassVar[float] = 10.0
    source: ClassVar[Literal["file", "url"] | None] = None

    @pytest.fixture
    def transport(self) -> Transport:
        """Give the transport under test; subclasses have to say which."""
        raise NotImplementedError("give your test class a fixture `transport` that returns your transport")

    @pytest.fixture
    def bench(
        self, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rrmove_node: EmbeddedNode
    ) -> Iterator[Bench]:
        """Put the transport on a bench: a node, a home and a temporary directory of their own, a server for URLs."""
        for name in ("state", "tmp", "sources"):
            (tmp_path / name).mkdir()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv(MARK, str(tmp_path))
        kinds = transport.capabilities.sources
        kind = self.source or kinds[0]
        if kind not in kinds:
            pytest.skip(f"{transport.name} does not claim to move a {kind}")
        with Bench(
            transport, rrmove_node, tmp_path / "sources", settings=self.settings, patience=self.patience, kind=kind
        ) as bench:
            if (transport.name, kind) not in _serving:
                self._serves(bench)
                _serving.add((transport.name, kind))
            yield bench

    def _serves(self, bench: Bench) -> None:
        """Skip where the transport says itself that it cannot serve on this machine, now that all is known."""

        async def asked() -> object:
            async with bench.trial(bench.source(1, "probe")) as trial:
                return refusal(bench.transport, trial.request, trial.facts)

        reason = run(asked())
        (bench.folder / "probe").unlink()
        if isinstance(reason, str) and reason:
            pytest.skip(f"{bench.transport.name} refuses to serve here: {reason}")
