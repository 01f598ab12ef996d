"""Lives: what is learned within a move about how long connections live. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

ALIKE = 0.2  # figures that differ by less than a fifth have a common cause
RECENT = 6  # losses that count; a link's manners may change within a long move
MARGIN = 0.97  # of the shortest life seen, that a lane is given


@dataclass(slots=True)
class Lives:
    """The ages and loads at which connections were lost.

    A limit is believed from the second loss on, when the last figures are alike: by bytes (a
    firewall that counts), or by seconds (one with a clock). Ages that scatter, as 4 to 8 s do, are
    no limit to plan a lane's end by, but they tell how many spares it takes.
    """

    ages: list[float] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)

    def lost(self, age: float, load: int) -> None:
        """Note a connection that was lost after `age` seconds, with `load` bytes acknowledged."""
        self.ages.append(age)
        self.loads.append(load)

    @property
    def count(self) -> int:
        """How many connections were lost so far."""
        return len(self.ages)

    @property
    def load_limit(self) -> float | None:
        """Bytes that a connection may be given, where losses follow a byte count."""
        recent = self.loads[-RECENT:]
        if len(recent) > 1 and min(recent) > 0 and max(recent) - min(recent) < ALIKE * max(recent):
            return MARGIN * min(recent)
        return None

    def suspected_load(self, most: int) -> float | None:
        """Bytes at which connections may be cut here, as long as nothing speaks against it.

        That is the least load that was lost; but where one has carried clearly more, or carries
        `most` and lives, it was its age that ended the lesser one.
        """
        recent = [load for load in self.loads[-RECENT:] if load]
        if recent and max(most, *recent) < (1 + ALIKE) * min(recent):
            return min(recent)
        return None

    @property
    def age_limit(self) -> float | None:
        """Seconds at which a connection should be empty, where losses follow the clock.

        Where they follow the bytes as well, it is those that count: lanes of one age that shared the
        load fairly are cut at one time.
        """
        if self.load_limit is not None:
            return None
        recent = self.ages[-RECENT:]
        if len(recent) > 2 and max(recent) - min(recent) < ALIKE / 2 * max(recent):
            return MARGIN * min(recent)
        return None

    @property
    def typical_age(self) -> float | None:
        """Seconds that a connection lives, about; None where none was lost."""
        recent = sorted(self.ages[-RECENT:])
        return recent[len(recent) // 2] if recent else None

    def spares(self, lanes: int, rate: float, login: float) -> int:
        """Say how many connections should be under way so that `lanes` never have to wait for one.

        `rate` is the move's, in bytes a second, `login` the seconds a connection takes to be up.
        """
        limit = self.load_limit
        if limit is not None:
            return min(6, 1 + round(rate * login / limit))
        age = self.typical_age
        if age is not None:
            return min(6, 1 + round(lanes * login / max(age, login)))
        return 0
