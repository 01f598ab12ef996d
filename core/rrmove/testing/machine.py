"""Cuts, kills and retries in any order: a Hypothesis state machine over one part file."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from rrmove.containment import run_to_end
from rrmove.testing.faults import Faults

if TYPE_CHECKING:
    from collections.abc import Callable

    from rrmove.testing.bench import Bench, Result, Trial

SIZE = 5_000_001  # bytes: two chunks and a bit
LINK = 12e6  # bytes a second
STEPS = 3  # a step takes about a second


def survives(  # noqa: C901  one small function for each fault
    bench: Bench, earned: Callable[[Result, str], None], fail: Callable[[str], None], *, examples: int = 2
) -> None:
    """Run the machine: `earned` looks at each attempt's result, `fail` is told where the end is no whole file."""
    # What was left of earlier loops ends here, and after each attempt: Python 3.11 stumbles where
    # that happens while Hypothesis has it parse a lambda ("AST constructor recursion depth mismatch").
    gc.collect()
    count = 0

    class Faulty(RuleBasedStateMachine):
        def __init__(self) -> None:
            nonlocal count
            super().__init__()
            count += 1
            self.source = bench.source(SIZE, f"machine-{count}.bin")
            self.missing: int | None = None

        def attempt(self, what: str, faults: Faults, **sending: object) -> Result:
            result = run_to_end(bench.attempt(self.source, faults=faults, **sending))
            gc.collect()
            earned(result, what)
            if self.missing is not None and result.before > self.missing:
                fail(f"{what}: what was there before has gone: {self.missing} bytes were missing, then {result.before}")
            self.missing = result.missing
            return result

        @rule(after=st.integers(300_000, SIZE))
        def cut_by_bytes(self, after: int) -> None:
            self.attempt(f"connections cut after {after} bytes", Faults(reset_after_bytes=after, rate=LINK))

        @rule(age=st.floats(0.2, 1.0))
        def cut_by_age(self, age: float) -> None:
            self.attempt(f"connections cut after {age} s", Faults(reset_after_seconds=age, rate=LINK))

        @rule(at=st.integers(0, SIZE // 2))
        def kill(self, at: int) -> None:
            async def killed(_: Trial) -> None:
                for pid in bench.node.processes():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

            self.attempt(f"processes killed after {at} bytes", Faults(rate=LINK), rate=LINK, at=at, during=killed)

        @rule(at=st.integers(0, SIZE // 2))
        def cancel(self, at: int) -> None:
            self.attempt(f"cancelled after {at} bytes", Faults(rate=LINK), rate=LINK, at=at, cancel=True)

        def teardown(self) -> None:
            result = self.attempt("the last attempt, on a good link", Faults())
            if not result.whole:
                fail(f"after all faults an attempt on a good link failed: {result.error}")

    run_state_machine_as_test(
        Faulty,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
