"""The link model against what was measured: rankings, livelock, and what history changes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove.estimate import Sharing, estimate
from rrmove.knowledge import Knowledge, Life
from rrmove.link import UNKNOWN_RTT, Link, link_of
from rrmove.model import Estimate, Node, Offer
from rrmove.priors import PRIORS, UNKNOWN, Prior, prior_of
from rrmove.probe import Facts
from rrmove.transport import Capabilities

MIB = 1024 * 1024
NOTHING = Knowledge()

# As the plugins of that name declare themselves, more or less.
KINDS = {
    "chunked": Capabilities(resume="exact", route="ssh", streams=8, ranges=True),
    "rsync": Capabilities(resume="rescan", route="ssh", setup=16),
    "scp": Capabilities(resume="none", route="ssh", setup=22),
    "base64": Capabilities(resume="none", route="ssh", overhead=4 / 3),
    "http": Capabilities(resume="exact", route="direct", streams=4, ranges=True, setup=15),
}


def seconds_of(name: str, size: int, link: Link, missing: int | None = None) -> float:
    return reckon(name, size, link, missing).seconds


def reckon(
    name: str,
    size: int,
    link: Link,
    missing: int | None = None,
    knowledge: Knowledge = NOTHING,
) -> Estimate:
    return estimate(
        KINDS[name],
        missing=size if missing is None else missing,
        size=size,
        link=link,
        transport=name,
        knowledge=knowledge,
    )


NARROW_CUT_BYTES = Link(rtt=0.0005, rate=2e6, life_bytes=6e6)
NARROW_CUT_AGE = Link(rtt=0.0005, rate=2e6, life_seconds=6)
WIDE_CUT_AGE = Link(rtt=0.04, rate=20e6, life_seconds=6)
WIDE_CUT_BYTES = Link(rtt=0.04, rate=20e6, life_bytes=6e6)
LONG = Link(rtt=0.15, rate=125e6)
FAR = Link(rtt=0.08)
OPEN = Link(rtt=0.02)
SHORT = Link(rtt=0.0003)

# (transport, size, link, seconds measured): the model has to come within a third
MEASURED = [
    pytest.param("rsync", 10 * MIB, NARROW_CUT_BYTES, 6.8, id="10MB-rst-6MB-rsync"),
    pytest.param("rsync", 10 * MIB, NARROW_CUT_AGE, 5.6, id="10MB-rst-4-8s-rsync"),
    pytest.param("rsync", 256 * MIB, WIDE_CUT_AGE, 20.8, id="256MiB-rst-4-8s-rsync"),
    pytest.param("rsync", 64 * MIB, WIDE_CUT_BYTES, 28.3, id="64MiB-rst-6MB-rsync"),
    pytest.param("rsync", 256 * MIB, LONG, 24.0, id="256MiB-150ms-rsync"),
    pytest.param("scp", 256 * MIB, LONG, 24.9, id="256MiB-150ms-scp"),
    pytest.param("scp", MIB, FAR, 2.6, id="1MiB-80ms-scp"),
    pytest.param("chunked", 256 * MIB, WIDE_CUT_AGE, 15.7, id="256MiB-rst-4-8s-lanes"),
    pytest.param("chunked", 64 * MIB, WIDE_CUT_BYTES, 5.2, id="64MiB-rst-6MB-lanes"),
    pytest.param("chunked", 256 * MIB, LONG, 6.2, id="256MiB-150ms-lanes"),
]


@pytest.mark.parametrize(("name", "size", "link", "measured"), MEASURED)
def test_the_model_comes_within_a_third_of_what_was_measured(name: str, size: int, link: Link, measured: float) -> None:
    assert seconds_of(name, size, link) == pytest.approx(measured, rel=1 / 3)


# (size, link, the order measured); "!" marks those that never finish
RANKINGS = [
    pytest.param(10 * MIB, NARROW_CUT_BYTES, "chunked http rsync base64! scp!", id="10MB-6MB"),
    pytest.param(10 * MIB, NARROW_CUT_AGE, "chunked rsync http scp base64", id="10MB-4-8s"),
    pytest.param(256 * MIB, WIDE_CUT_AGE, "chunked http rsync base64! scp!", id="256MiB-4-8s"),
    pytest.param(64 * MIB, WIDE_CUT_BYTES, "chunked http rsync base64! scp!", id="64MiB-6MB"),
    pytest.param(256 * MIB, LONG, "chunked http rsync scp base64", id="256MiB-150ms"),
    pytest.param(MIB, FAR, "chunked base64 http rsync scp", id="1MiB-80ms"),
    pytest.param(MIB, OPEN, "chunked base64 rsync http scp", id="1MiB-20ms"),
    pytest.param(1024 * MIB, OPEN, "http chunked rsync scp base64", id="1GiB-20ms"),
    pytest.param(1024 * MIB, SHORT, "http chunked rsync scp base64", id="1GiB-lan"),
    pytest.param(64 * MIB, SHORT, "chunked rsync scp http base64", id="64MiB-lan"),
]


@pytest.mark.parametrize(("size", "link", "order"), RANKINGS)
def test_the_transports_rank_as_measured(size: int, link: Link, order: str) -> None:
    seconds = {name: seconds_of(name, size, link) for name in KINDS}
    ranked = sorted(seconds, key=lambda name: (seconds[name], name))
    shown = " ".join(name + "!" * math.isinf(seconds[name]) for name in ranked)
    assert shown == order


def test_on_a_clean_short_link_the_plain_tools_lose_next_to_nothing() -> None:
    floor = seconds_of("chunked", 64 * MIB, SHORT)
    assert seconds_of("scp", 64 * MIB, SHORT) < floor * 1.05
    assert seconds_of("rsync", 64 * MIB, SHORT) < floor * 1.05


@pytest.mark.parametrize(("streams", "megabytes_a_second"), [(1, 23), (2, 45), (4, 83), (8, 100)])
def test_one_ssh_stream_is_bound_by_its_window(streams: int, megabytes_a_second: float) -> None:
    kind = Capabilities(resume="exact", route="ssh", streams=streams)
    link = Link(rtt=0.08, rate=100e6)
    found = estimate(kind, missing=10**10, size=10**10, link=link, transport="x", knowledge=NOTHING)
    assert 1e4 / dict(found.terms)["send"] == pytest.approx(megabytes_a_second, rel=0.3)


class TestLivelock:
    def test_rereading_that_eats_the_life_never_finishes(self) -> None:
        # measured: 6.0 of 6.4 GB present, reset every 4 s: four tries gained nothing
        found = reckon("rsync", 6_400_000_000, Link(rtt=0.001, life_seconds=4), 400_000_000)
        assert math.isinf(found.seconds)
        assert "rereads" in found.note
        assert "6.00 GB" in found.note

    def test_the_same_file_is_no_matter_for_exact_resume(self) -> None:
        assert seconds_of("chunked", 6_400_000_000, Link(rtt=0.001, life_seconds=4), 400_000_000) < 10

    def test_a_file_that_only_grows_into_livelock_is_seen_from_the_start(self) -> None:
        link = Link(rtt=0.001, rate=100e6, life_seconds=4)
        assert math.isfinite(seconds_of("rsync", 10**9, link))
        assert math.isinf(seconds_of("rsync", 10**10, link))

    def test_a_single_life_needs_no_reread(self) -> None:
        assert math.isfinite(seconds_of("rsync", MIB, Link(life_seconds=4)))

    @pytest.mark.parametrize("name", ["scp", "base64"])
    def test_what_starts_over_has_to_fit_into_one_life(self, name: str) -> None:
        found = reckon(name, 64 * MIB, Link(life_bytes=6e6))
        assert math.isinf(found.seconds)
        assert "starts over" in found.note
        assert math.isfinite(seconds_of(name, MIB, Link(life_bytes=6e6)))

    def test_a_life_shorter_than_a_login_defeats_even_exact_resume(self) -> None:
        found = reckon("chunked", MIB, Link(rtt=0.2, life_seconds=1))
        assert math.isinf(found.seconds)
        assert "too short" in found.note

    def test_one_figure_alone_does_not_condemn_exact_resume(self) -> None:
        # Lives of 1 s that carried 6 MB: the login took most of it, on another route.
        assert math.isfinite(seconds_of("chunked", 64 * MIB, Link(life_seconds=1, life_bytes=6e6)))

    def test_starting_over_costs_the_tries_in_vain(self) -> None:
        link = Link(rtt=0.0005, rate=2e6, life_seconds=6)
        terms = dict(reckon("scp", 10 * MIB, link).terms)
        assert any("in vain" in name for name in terms)


class TestLanes:
    def test_as_many_as_pay(self) -> None:
        assert "8 connections" in reckon("chunked", 256 * MIB, LONG).note
        assert "one connection" in reckon("chunked", 256 * MIB, SHORT).note

    def test_overlap_hides_reconnects(self) -> None:
        alone = Capabilities(resume="exact", route="ssh", streams=1)
        link = WIDE_CUT_BYTES
        one = estimate(
            alone,
            missing=64 * MIB,
            size=64 * MIB,
            link=link,
            transport="x",
            knowledge=NOTHING,
        )
        assert seconds_of("chunked", 64 * MIB, link) < one.seconds / 2

    @pytest.mark.parametrize("streams", [-3, 0, 10**9])
    def test_absurd_numbers_of_streams_do_no_harm(self, streams: int) -> None:
        kind = Capabilities(resume="exact", route="direct", streams=streams)
        found = estimate(kind, missing=MIB, size=MIB, link=FAR, transport="x", knowledge=NOTHING)
        assert math.isfinite(found.seconds)


def test_a_rate_limit_bounds_every_transport() -> None:
    link = Link(rtt=0.001, limit_rate=1e6)
    for name in KINDS:
        assert seconds_of(name, 10**7, link) >= 10


def test_nothing_missing_costs_a_connection() -> None:
    found = reckon("chunked", MIB, FAR, missing=0)
    assert [name for name, _ in found.terms] == ["connect"]


lives = st.none() | st.floats(0.01, 1e4)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    size=st.integers(0, 10**13),
    present=st.floats(0, 1),
    link=st.builds(
        Link,
        rtt=st.floats(0, 2),
        rate=st.none() | st.floats(1e3, 1e10),
        life_seconds=lives,
        life_bytes=st.none() | st.floats(1, 1e12),
        limit_rate=st.none() | st.floats(1e3, 1e10),
    ),
    rate=st.none() | st.floats(1, 1e10),
    success=st.none() | st.floats(0, 1),
    samples=st.integers(0, 1000),
)
def test_the_terms_add_up_on_every_link(
    kind: str,
    size: int,
    present: float,
    link: Link,
    rate: float | None,
    success: float | None,
    samples: int,
) -> None:
    known = Knowledge(
        rates={} if rate is None else {kind: rate},
        success={} if success is None else {kind: success},
        samples=samples,
    )
    found = reckon(kind, size, link, int(size * (1 - present)), known)
    assert found.note
    if math.isinf(found.seconds):
        assert found.seconds > 0
    else:
        assert found.seconds >= 0
        assert sum(seconds for _, seconds in found.terms) == pytest.approx(found.seconds)


class TestHistory:
    def test_an_observed_rate_outvotes_the_model_as_samples_grow(self) -> None:
        def after(samples: int) -> float:
            known = Knowledge(rates={"scp": 1e6}, samples=samples)
            return reckon("scp", 10**8, SHORT, knowledge=known).seconds

        assert after(0) == pytest.approx(seconds_of("scp", 10**8, SHORT))
        assert after(0) < after(1) < after(5) < after(100)
        assert after(1000) == pytest.approx(100, rel=0.05)

    def test_short_moves_do_not_slander_the_rate(self) -> None:
        known = Knowledge(rates={"scp": 4e5}, samples=100, history=(("scp", 2.7, 2.6),) * 3)
        found = reckon("scp", 256 * MIB, FAR, knowledge=known)
        assert found.seconds < 256 * MIB / 4e5 / 3

    def test_what_often_fails_ranks_lower(self) -> None:
        known = Knowledge(success={"http": 0.1, "chunked": 1.0}, samples=20)
        http = reckon("http", 64 * MIB, FAR, knowledge=known)
        chunked = reckon("chunked", 64 * MIB, FAR, knowledge=known)
        assert chunked.seconds < http.seconds
        assert any("failed" in name for name, _ in http.terms)


class TestLinkOf:
    def test_the_probed_round_trip_comes_first(self) -> None:
        node = Node(name="n")
        known = Knowledge(rtt=0.3, samples=1)
        assert link_of(node, Facts({"rtt": "0.085"}), known).rtt == 0.085
        assert link_of(node, Facts({"rtt": "what?"}), known).rtt == 0.3
        assert link_of(node, Facts(), NOTHING).rtt == UNKNOWN_RTT

    @pytest.mark.parametrize(
        ("name", "provider", "prior"),
        [
            ("vast-29128352", None, PRIORS["vast"]),
            ("gpu7", "Vast.ai", PRIORS["vast"]),
            ("nebius-h100-3", None, PRIORS["nebius"]),
            ("nebius-h100-3", "hetzner", PRIORS["hetzner"]),
            ("hetzner-cpu1", "", PRIORS["hetzner"]),
            ("runpod.l40s", "unheard of", PRIORS["runpod"]),
            ("gpu7", "unheard of", UNKNOWN),
            ("", None, UNKNOWN),
        ],
    )
    def test_the_prior_is_the_providers(self, name: str, provider: str | None, prior: Prior) -> None:
        node = Node(name=name, provider=provider, limit_rate=5.0)
        link = link_of(node, Facts(), NOTHING)
        assert prior_of(node) == prior
        assert (link.life_seconds, link.life_bytes, link.rate) == (
            prior.life_seconds,
            prior.life_bytes,
            prior.rate,
        )
        assert link.limit_rate == 5.0

    def test_history_outvotes_the_prior(self) -> None:
        node = Node(name="runpod-1")

        def life(samples: int) -> float:
            link = link_of(node, Facts(), Knowledge(life_seconds=60, samples=samples))
            return link.life_seconds or math.inf

        assert 6 < life(1) < life(10) < life(1000)
        assert life(1000) == pytest.approx(60, rel=0.05)

    def test_time_survived_without_a_loss_lengthens_the_prior(self) -> None:
        node = Node(name="gpu7")
        known = Knowledge(samples=3, history=(("rsync", 90.0, 100.0),) * 3)
        assert link_of(node, Facts(), known).life_seconds == pytest.approx(210)

    def test_many_short_moves_are_no_proof_of_long_lives(self) -> None:
        known = Knowledge(samples=50, rates={"scp": 1e5}, history=(("scp", 1.0, 1.0),) * 10)
        link = link_of(Node(name="nebius-1"), Facts(), known)
        assert link.life_bytes is not None
        assert link.life_bytes < 7e6

    def test_a_stable_provider_that_turns_bad_is_believed_to(self) -> None:
        known = Knowledge(life_seconds=5, samples=8)
        link = link_of(Node(name="hetzner-1"), Facts(), known)
        assert link.life_seconds == pytest.approx(6.25)

    def test_a_rate_below_the_window_is_the_lines(self) -> None:
        known = Knowledge(rates={"rsync": 3e6}, samples=4)
        assert link_of(Node(name="gpu7"), Facts({"rtt": "0.05"}), known).rate == 3e6

    def test_a_rate_at_the_window_says_nothing_of_the_line(self) -> None:
        known = Knowledge(rates={"rsync": 13e6}, samples=4)
        link = link_of(Node(name="gpu7"), Facts({"rtt": "0.15"}), known)
        assert link.rate is not None
        assert link.rate > 100e6

    def test_this_move_beats_all_that_was_believed(self) -> None:
        seen = [Life(seconds=age, carried=6_000_000) for age in (0.5, 4.0, 9.0, 2.0)]
        link = link_of(Node(name="hetzner-1"), Facts(), NOTHING, seen)
        assert link.life_bytes == pytest.approx(7.5e6)
        assert link.life_seconds is None

    def test_losses_at_one_age_are_an_age_limit(self) -> None:
        seen = [Life(seconds=5.0, carried=load) for load in (10**5, 10**7, 10**8)]
        link = link_of(Node(name="hetzner-1"), Facts(), NOTHING, seen)
        assert link.life_bytes is None
        assert link.life_seconds == pytest.approx(20 / 3)

    def test_one_loss_bounds_both(self) -> None:
        seen = [Life(seconds=5.0, carried=10**6)]
        link = link_of(Node(name="hetzner-1"), Facts(), NOTHING, seen)
        assert link.life_seconds == pytest.approx(10)
        assert link.life_bytes == pytest.approx(2e6)

    def test_a_loss_before_anything_was_carried_does_no_harm(self) -> None:
        seen = [Life(seconds=0.0, carried=0)] * 4
        link = link_of(Node(name="gpu7"), Facts(), NOTHING, seen)
        assert link.life_seconds is not None
        assert link.life_seconds > 0


class TestAnAudienceSharesOurLine:
    SIZE = 64 * MIB
    KINDS = {  # noqa: RUF012
        **KINDS,
        "fetch": Capabilities(resume="exact", route="web", ranges=True),
        "torrent": Capabilities(resume="exact", route="swarm", streams=8, ranges=True),
        "sibling": Capabilities(resume="exact", route="sibling", streams=2, ranges=True, setup=15),
    }

    def reckon(self, name: str, link: Link, sharing: Sharing) -> Estimate:
        return estimate(
            self.KINDS[name],
            missing=self.SIZE,
            size=self.SIZE,
            link=link,
            transport=name,
            knowledge=NOTHING,
            sharing=sharing,
        )

    @pytest.mark.parametrize("name", ["chunked", "rsync", "http"])
    @pytest.mark.parametrize("link", [OPEN, WIDE_CUT_AGE, LONG], ids=["open", "cut", "long"])
    def test_for_one_nothing_changes(self, name: str, link: Link) -> None:
        assert self.reckon(name, link, Sharing(uplink=1e6)) == reckon(name, self.SIZE, link)

    @pytest.mark.parametrize(
        ("link", "uplink", "rate"),
        [
            (Link(rtt=0.02, rate=20e6), 20e6, 2.5e6),  # the uplink bounds
            (Link(rtt=0.02, rate=2e6), 80e6, 2e6),  # the node's own line does
            (Link(rtt=0.02, rate=2e6), None, 2e6),  # of the uplink nothing is known: 1 Gbit/s is enough for that
            (Link(rtt=0.02, rate=100e6), None, 125e6 / 8),
            (Link(rtt=0.02, rate=20e6, limit_rate=8e6), 20e6, 1e6),  # what is allowed is for all together
        ],
    )
    def test_the_least_of_the_own_line_and_a_share_of_ours(self, link: Link, uplink: float | None, rate: float) -> None:
        sharing = Sharing(audience=8, uplink=uplink, limit_rate=link.limit_rate)
        for name in ("chunked", "http"):
            assert self.reckon(name, link, sharing).seconds == pytest.approx(self.SIZE / rate, rel=0.2)

    def test_the_terms_say_so_and_add_up(self) -> None:
        link = Link(rtt=0.02, rate=20e6)
        shared = self.reckon("chunked", link, Sharing(audience=8, uplink=20e6))
        assert shared.terms[-1][0] == "shared by 8"
        assert sum(seconds for _, seconds in shared.terms) == pytest.approx(shared.seconds)
        assert shared.seconds - shared.terms[-1][1] == pytest.approx(reckon("chunked", self.SIZE, link).seconds)

    def test_of_an_unknown_line_each_of_many_has_its_part(self) -> None:
        alone, shared = reckon("chunked", self.SIZE, OPEN), self.reckon("chunked", OPEN, Sharing(audience=8))
        assert 4 < (shared.seconds - alone.terms[0][1]) / alone.terms[1][1] <= 8.5

    def test_what_was_seen_alone_is_shared_as_well(self) -> None:
        known = Knowledge(rates={"chunked": 20e6}, samples=20, history=(("chunked", 4.0, 4.0),))
        shared = estimate(
            KINDS["chunked"],
            missing=self.SIZE,
            size=self.SIZE,
            link=Link(rtt=0.02, rate=20e6),
            transport="chunked",
            knowledge=known,
            sharing=Sharing(audience=8, uplink=20e6),
        )
        assert shared.seconds == pytest.approx(8 * self.SIZE / 20e6, rel=0.2)

    def test_a_swarm_and_a_sibling_need_our_line_about_once(self) -> None:
        link, once = Link(rtt=0.02, rate=20e6), self.SIZE / 20e6
        many = Sharing(audience=20, uplink=20e6, offer=Offer(giver="hub", remaining=once), meets=True)
        seconds = {name: self.reckon(name, link, many).seconds for name in ("chunked", "torrent", "sibling")}
        assert seconds["torrent"] == pytest.approx(1.2 * once, rel=0.25)
        assert seconds["sibling"] == pytest.approx(once, rel=0.25)
        assert seconds["sibling"] < seconds["torrent"] < seconds["chunked"] / 10
        waited = self.reckon("sibling", link, many).terms[-1]
        assert waited[0] == "until hub has all of it"

    def test_a_swarm_of_strangers_gets_it_all_from_us(self) -> None:
        link = Link(rtt=0.02, rate=20e6)
        apart = self.reckon("torrent", link, Sharing(audience=20, uplink=20e6))
        assert apart.seconds == pytest.approx(20 * self.SIZE / 20e6, rel=0.25)
        assert apart.terms[-1][0] == "shared by 20"

    def test_a_giver_that_has_it_all_is_as_quick_as_the_way_between_them(self) -> None:
        offer = Offer(giver="hub", rate=50e6)
        found = self.reckon("sibling", Link(rtt=0.02, rate=2e6, life_seconds=6), Sharing(audience=3, offer=offer))
        assert found.seconds - found.terms[0][1] == pytest.approx(self.SIZE / 50e6, rel=0.1)

    @given(st.integers(1, 40), st.one_of(st.none(), st.floats(1e5, 1e9)), st.one_of(st.none(), st.floats(1e5, 1e9)))
    def test_more_who_share_never_make_it_quicker(self, many: int, uplink: float | None, rate: float | None) -> None:
        link = Link(rtt=0.02, rate=rate)
        few = self.reckon("chunked", link, Sharing(audience=many, uplink=uplink)).seconds
        assert self.reckon("chunked", link, Sharing(audience=many + 1, uplink=uplink)).seconds >= few * (1 - 1e-9)
