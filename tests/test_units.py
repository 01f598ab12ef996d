"""Sizes, rates and times, there and back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove.errors import UsageError
from rrmove.units import format_rate, format_seconds, format_size, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("50M", 50_000_000),
        ("50m", 50_000_000),
        ("50MB", 50_000_000),
        ("50 MB", 50_000_000),
        (" 50MiB ", 50 << 20),
        ("50Mi", 50 << 20),
        ("1.5G", 1_500_000_000),
        (".5k", 500),
        ("1KiB", 1024),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50M", 50e6),
        ("50MB/s", 50e6),
        ("50MiB/s", 50 * 2**20),
        ("400Mbit", 50e6),
        ("400 Mbit/s", 50e6),
        ("1Gbits/s", 125e6),
        ("100kbps", 100e3),
        ("0.5", 0.5),
    ],
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "M", "fast", "-5M", "0", "0M", "inf", "nan", "1e6", "5iB", "50Mb", "1,5M", "5X"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rate(text)
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["400Mbit", "50MB/s", "50Mb", "\u0665M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.00 kB"),
        (1000, "1.00 kB"),
        (4_200_000, "4.20 MB"),
        (12_345_678, "12.3 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1.00 GB"),
        (10**19, "10000 PB"),
    ],
)
def test_sizes_as_written(size: float, text: str) -> None:
    assert format_size(size) == text
    assert format_rate(size) == text + "/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.352, "0.35 s"),
        (4.44, "4.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (90_000, "1 d 01 h"),
        (math.inf, "never"),
        (math.nan, "unknown"),
    ],
)
def test_times_as_written(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.integers(0, 10**17))
def test_a_written_size_reads_as_nearly_the_same(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.006, abs=0.5)


@given(st.text())
def test_any_text_is_a_rate_or_a_usage_error(text: str) -> None:
    try:
        rate = parse_rate(text)
    except UsageError:
        return
    assert 0 < rate < math.inf
