"""What is learned from lost connections: limits where there is a pattern, none where there is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove_plugins.chunked.lives import MARGIN, RECENT, Lives

MB = 1_000_000


def lives(*losses: tuple[float, int]) -> Lives:
    known = Lives()
    for age, load in losses:
        known.lost(age, load)
    return known


@pytest.mark.parametrize(
    ("loads", "limit"),
    [
        ([], None),
        ([6 * MB], None),  # once is chance
        ([6 * MB, 6 * MB], 6 * MB),
        ([6 * MB, 5 * MB], 5 * MB),
        ([6 * MB, int(4.7 * MB)], None),  # they differ by more than a fifth
        ([6 * MB, 60 * MB], None),
        ([6 * MB, 6 * MB, 6 * MB, 60 * MB], None),
        ([60 * MB] + [6 * MB] * RECENT, 6 * MB),  # what is long ago does not count
        ([0, 0, 0], None),
    ],
)
def test_load_limit(loads: list[int], limit: int | None) -> None:
    known = lives(*((float(number + 1) ** 2, load) for number, load in enumerate(loads)))
    assert known.load_limit == (None if limit is None else pytest.approx(MARGIN * limit))
    assert known.count == len(loads)


@pytest.mark.parametrize(
    ("ages", "limit"),
    [
        ([], None),
        ([5.0], None),
        ([5.0, 5.0], None),  # a clock is believed from the third on
        ([5.0, 5.0, 5.0], 5.0),
        ([5.0, 5.2, 4.9], 4.9),
        ([4.0, 6.0, 8.0], None),  # ages that scatter are no limit
        ([30.0] + [5.0] * RECENT, 5.0),
        ([5.0] * RECENT + [9.0], None),
    ],
)
def test_age_limit(ages: list[float], limit: float | None) -> None:
    known = lives(*((age, 10**number) for number, age in enumerate(ages)))
    assert known.age_limit == (None if limit is None else pytest.approx(MARGIN * limit))


@pytest.mark.parametrize(
    ("ages", "typical"), [([], None), ([7.0], 7.0), ([4.0, 8.0, 6.0], 6.0), ([100.0] + [5.0] * RECENT, 5.0)]
)
def test_typical_age(ages: list[float], typical: float | None) -> None:
    assert lives(*((age, 1) for age in ages)).typical_age == typical


@pytest.mark.parametrize(
    ("known", "lanes", "rate", "login", "spares"),
    [
        (lives(), 8, 50 * MB, 1.0, 0),
        (lives((5, MB), (9, MB)), 1, 10 * MB, 0.01, 1),  # a login is quick: one spare is enough
        (lives((5, 5 * MB), (9, 5 * MB)), 4, 10 * MB, 1.0, 3),  # two connections are used up during a login
        (lives((5, MB), (9, MB)), 8, 100 * MB, 2.0, 6),  # never more than six
        (lives((6.0, MB), (4.0, 9 * MB)), 4, 10 * MB, 1.5, 2),
        (lives((6.0, MB), (4.0, 9 * MB)), 16, 10 * MB, 30.0, 6),
        (lives((0.0, MB), (0.0, 9 * MB)), 2, 10 * MB, 1.0, 3),  # died at once: no division by it
    ],
)
def test_spares(known: Lives, lanes: int, rate: float, login: float, spares: int) -> None:
    assert known.spares(lanes, rate, login) == spares


@given(
    st.lists(st.tuples(st.floats(0.0, 1e5), st.integers(0, 1 << 50)), max_size=12),
    st.integers(1, 16),
    st.floats(0.0, 1e10),
    st.floats(1e-3, 60.0),
)
def test_limits_are_never_above_the_worst_and_spares_are_few(
    losses: list[tuple[float, int]], lanes: int, rate: float, login: float
) -> None:
    known, recent = lives(*losses), losses[-RECENT:]
    if known.load_limit is not None:
        assert 0 < known.load_limit < min(load for _, load in recent)
    if known.age_limit is not None:
        assert 0 < known.age_limit < min(age for age, _ in recent)
    assert 0 <= known.spares(lanes, rate, login) <= 6


@pytest.mark.parametrize(
    ("losses", "most", "expected"),
    [
        ([], 0, None),
        ([(2.0, 6_000_000)], 6_100_000, 6_000_000),
        # A spare that had carried little died of age while another carries twenty times that.
        ([(5.4, 630_000)], 12_000_000, None),
        ([(5.0, 11_000_000), (5.4, 630_000)], 0, None),
    ],
)
def test_a_load_is_suspected_until_one_has_carried_more(
    losses: list[tuple[float, int]], most: int, expected: float | None
) -> None:
    lives = Lives()
    for age, load in losses:
        lives.lost(age, load)
    assert lives.suspected_load(most) == expected


def test_where_ages_and_loads_are_alike_it_is_the_load() -> None:
    """Three lanes that shared the load fairly are cut by their bytes at one time."""
    lives = Lives()
    for _ in range(3):
        lives.lost(2.01, 6_300_000)
    assert lives.load_limit is not None
    assert lives.age_limit is None
