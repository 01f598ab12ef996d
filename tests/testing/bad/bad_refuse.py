"""It takes for granted that every fact is known."""

from courier import Courier

from rrmove import Facts, Probe, Request

NEVER = Probe("never", "true", lambda _: None)


class Plugin(Courier):
    name = "bad_refuse"
    needs = (NEVER,)

    def refuse(self, request: Request, facts: Facts) -> str | None:
        del request
        return None if "x" in facts.get(NEVER) else "no x"  # type: ignore[operator]
