"""SOURCE and TARGET as typed: what each of them is, and what cannot be moved yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rrmove.cli.places import Kind, kind, source_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.scripted import Said, Script

KINDS: list[tuple[str, Kind]] = [
    ("model.pth", "local"),
    ("nothing-here", "local"),
    ("./gpu:x", "local"),
    ("../gpu:x", "local"),
    ("/data/a:b", "local"),
    ("dir/a:b", "local"),
    ("~/a:b", "local"),
    ("exists:here", "local"),
    ("gpu:x", "remote"),
    ("gpu:", "remote"),
    ("gpu:/data/x", "remote"),
    ("ubuntu@gpu:x", "remote"),
    ("[fe80::1]:/x", "remote"),
    ("me@[fe80::1]:/x", "remote"),
    ("https://host/x", "url"),
    ("HTTP://host/x", "url"),
    ("s3://bucket/x", "url"),
    ("-", "stdin"),
]


@pytest.mark.parametrize(("text", "expected"), KINDS)
def test_what_a_source_is(text: str, expected: Kind) -> None:
    Path("exists:here").touch()
    assert kind(text) == expected


def test_a_local_file_is_taken_as_it_was_written() -> None:
    assert source_of("./model.pth") == Path("model.pth")


USAGE = [
    ("model.pth gpu-3 me@gpu-3", "'gpu-3' is named twice", "Run once for each"),
    ("model.pth gpu-3 nowhere-at-all", "unknown node", "gpu-3"),
    ("model.pth @none", "no node has the tag", "@gpu"),
    ("model.pth ./there", "is a local path", "NODE:"),
    ("model.pth nowhere-at-all", "unknown node", "gpu-3"),
    (". gpu-3", "is a directory", "tar"),
    ("missing.pth gpu-3", "cannot read 'missing.pth'", "Check the path"),
    ("gpu-3 model.pth", "there is no file gpu-3", "`rrmove auto model.pth gpu-3`"),
    ("gpu-4:/x gpu-3", "not from one", "./gpu-4:/x"),
    ("s3://bucket/x gpu-3", "s3:// cannot be fetched", "Give an http or https URL"),
    ("- gpu-3", "standard input", "to a file first"),
]


@pytest.mark.parametrize(("line", "what", "remedy"), USAGE, ids=[line for line, _, _ in USAGE])
def test_what_cannot_be_moved_is_refused_before_anything_is_done(
    line: str, what: str, remedy: str, rrmove: Callable[..., Said], script: Script
) -> None:
    said = rrmove("auto", *line.split())
    first, *rest = said.err.splitlines()
    assert (said.code, said.out) == (2, "")
    assert first.startswith("rrmove: ")
    assert what in first
    assert remedy in "\n".join(rest)
    assert not script.calls


def test_a_tag_that_means_one_node_is_that_node(rrmove: Callable[..., Said], script: Script) -> None:
    assert rrmove("auto", "model.pth", "@solo:/scratch/").code == 0
    (call,) = script.calls
    node = call["target"]
    assert (node.name, node.destination) == ("gpu-4", "/scratch/")  # type: ignore[attr-defined]
