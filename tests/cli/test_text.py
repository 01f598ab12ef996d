"""What a name contains cannot move the cursor, end a line, or crash the command."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove.cli.table import columns
from rrmove.cli.text import middle_out, printable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("model.pth", "model.pth"),
        ("größe 模型.pth", "größe 模型.pth"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("bell\x07 csi\x9b", "bell\\x07 csi\\x9b"),
        ("exe\u202ecod.", "exe\\u202ecod."),
        ("\udcff.bin", "\\xff.bin"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_control_characters_are_escaped(raw: str, shown: str) -> None:
    assert printable(raw) == shown


@given(st.text(st.characters()))
def test_whatever_the_name_the_text_is_one_printable_line(raw: str) -> None:
    assert printable(raw).isprintable()
    printable(raw).encode("utf-8")


@given(st.text(), st.integers(5, 40))
def test_a_name_is_shortened_in_its_middle(name: str, width: int) -> None:
    short = middle_out(name, width)
    assert len(short) <= width
    assert short == name or (len(short) == width and name.startswith(short[: (width - 1) // 2]))


def test_columns_are_aligned_and_empty_ones_are_left_out() -> None:
    rows = [("1", "chunked", "", "x"), ("10", "scp", "", "y")]
    assert columns(rows, ("N", "NAME", "NONE", "WHY"), right=(0,)) == [
        " N  NAME     WHY",
        " 1  chunked  x",
        "10  scp      y",
    ]
    assert columns([], ("N", "NAME")) == []


def test_long_cells_are_broken_inside_their_own_column() -> None:
    lines = columns([("rsync", "it has to reread what is there, and that takes too long")], ("T", "WHY"), width=40)
    assert lines == [
        "T      WHY",
        "rsync  it has to reread what is there,",
        "       and that takes too long",
    ]


def test_without_a_terminal_a_row_is_a_line() -> None:
    assert len(columns([("a", "word " * 100)])) == 1


def test_what_can_be_spared_is_left_out_where_the_width_is_too_small() -> None:
    rows = [("gpu-0", "verified", "9.1 s", "1.3 MB/s", ""), ("gpu-1", "failed", "0.6 s", "", "the disk is full")]
    head = ("NODE", "RESULT", "TOOK", "RATE", "BY")
    assert columns(rows, head, spare=(3, 2), width=50)[0].split() == list(head)
    assert columns(rows, head, spare=(3, 2), width=49)[0].split() == ["NODE", "RESULT", "TOOK", "BY"]
    assert columns(rows, head, spare=(3, 2), width=39)[0].split() == ["NODE", "RESULT", "BY"]
    for width in (50, 49, 39):
        assert max(map(len, columns(rows, head, spare=(3, 2), width=width))) <= width
