"""Loading: what the core looks at before it lets a transport work."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rrmove.fitness import made
from rrmove.probe import Facts
from rrmove.testing.verdict import fail, refusal, run

if TYPE_CHECKING:
    from rrmove.model import Request
    from rrmove.testing.bench import Bench
    from rrmove.transport import Transport


class Loading:
    """Checks of what it is."""

    def test_it_is_fit_to_be_loaded(self, transport: Transport) -> None:
        """Its attributes are what the core expects of a transport."""
        _, problem = made(transport)
        if problem is not None:
            fail(transport, f"{problem}. See docs/transports.md for what it has to be")

    def test_its_distribution_is_fit_to_be_loaded(self, transport: Transport) -> None:
        """Where it is installed, a new process finds it, in time, and under a name that nobody else has."""
        argv = [sys.executable, "-m", "rrmove", "plugins", "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        rows = [row for row in map(json.loads, done.stdout.splitlines()) if row["name"] == transport.name]
        if not rows:
            pytest.skip(f"no installed distribution registers {transport.name}")
        row = rows[0]
        if row["problem"]:
            fail(transport, f"as installed, {row['problem']}. {row['remedy']}")
        if row["remedy"]:
            fail(transport, f"{row['remedy']}")

    def test_it_refuses_nothing_for_want_of_facts(self, bench: Bench) -> None:
        """With everything unknown it answers None, twice the same, and at once."""
        transport, source = bench.transport, bench.source(1)

        async def looked_at() -> Request:
            async with bench.trial(source) as trial:
                return trial.request

        request = run(looked_at())
        first, second = (refusal(transport, request, Facts()) for _ in range(2))
        if first is not None and not isinstance(first, str):
            fail(transport, f"refuse() answered {first!r}. Let it give a reason as a str, or None")
        if first != second:
            fail(transport, f"refuse() answered {first!r}, then {second!r}. Let it depend on its arguments alone")
        if first is not None:
            fail(
                transport,
                f"refuse() says {first!r} where nothing is known of the node, and nothing against it where all "
                "is. A fact that is None is unknown: refuse only for what is known",
            )
