"""Probes: recorded answers and what is read from them; and the snippets in real shells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove.probe import (
    CLIENT,
    PORTS,
    SPACE,
    STANDARD,
    SYSTEM,
    TOOLS,
    Client,
    Facts,
    Probe,
    describe,
    port_in_words,
)

RECORDED = Path(__file__).parent / "probes"
BY_NAME = {probe.name: probe for probe in STANDARD}
ASKED = [probe for probe in STANDARD if probe.ask is not None]
SHELLS = [
    pytest.param(
        shell.split(),
        id=shell,
        marks=pytest.mark.skipif(not shutil.which(shell.split()[0]), reason=f"no {shell} here"),
    )
    for shell in ("dash", "bash", "busybox sh")
]


def plain(fact: Any) -> Any:
    """Turn a fact into what JSON can hold."""
    if is_dataclass(fact) and not isinstance(fact, type):
        return asdict(fact)
    if isinstance(fact, Mapping):
        return {str(key): value for key, value in fact.items()}
    return fact


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*/*.json")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_recorded_answer(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    assert plain(BY_NAME[path.parent.name].parse(case["answer"])) == case["fact"]


def test_every_probe_has_a_recorded_answer() -> None:
    assert {path.name for path in RECORDED.iterdir()} == BY_NAME.keys()


@given(
    st.sampled_from(STANDARD),
    st.text() | st.lists(st.text("have listed=client room0 1%~/.\n")).map("".join),
)
def test_no_answer_makes_a_parser_raise(probe: Probe[Any], answer: str) -> None:
    probe.parse(answer)
    describe(Facts({probe.name: answer}))


# In real shells


def ask(shell: list[str], probe: Probe[Any], **env: str) -> tuple[str, float]:
    assert probe.ask is not None
    begun = time.monotonic()
    done = subprocess.run(
        [shutil.which(shell[0]) or shell[0], *shell[1:], "-c", probe.ask],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, **env},
        timeout=20,
        check=True,
    )
    assert done.stderr == b""
    return done.stdout.decode(), time.monotonic() - begun


@pytest.mark.parametrize("probe", ASKED, ids=lambda probe: probe.name)
@pytest.mark.parametrize("shell", SHELLS)
def test_snippet_is_answered(shell: list[str], probe: Probe[Any]) -> None:
    answer, seconds = ask(shell, probe, SSH_CONNECTION="198.51.100.7 50022 203.0.113.9 22")
    assert probe.parse(answer) is not None, answer
    assert seconds < 2  # 30-60 ms where nothing else runs


@pytest.mark.parametrize("shell", SHELLS)
def test_tools_are_those_that_are_there(shell: list[str]) -> None:
    tools = TOOLS.parse(ask(shell, TOOLS)[0])
    assert tools is not None
    for tool in (
        "python3",
        "rsync",
        "aria2c",
        "curl",
        "wget",
        "transmission-cli",
        "tailscale",
        "socat",
    ):
        if shell[0] == "busybox" and tool not in {"rsync", "aria2c"}:
            continue  # it counts its own applets
        assert (tool in tools) == (shutil.which(tool) is not None), tool
        if tool in tools and tool in {"python3", "rsync", "aria2c"}:
            assert tools[tool][0].isdigit()


@pytest.mark.parametrize("script", ["exec sleep 30", "sleep 30", "trap '' TERM INT; while :; do sleep 1; done"])
@pytest.mark.parametrize("shell", SHELLS)
def test_a_hanging_tool_keeps_nothing_from_the_others(shell: list[str], script: str, tmp_path: Path) -> None:
    if shell[0] == "busybox" and not script.startswith("exec"):
        pytest.skip("its timeout ends the tool only, not the tool's children: the agent's 3 s serve")
    fake = tmp_path / "aria2c"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    answer, seconds = ask(shell, TOOLS, PATH=f"{tmp_path}:{os.environ['PATH']}")
    tools = TOOLS.parse(answer)
    assert tools is not None
    assert tools["aria2c"] == ""
    assert tools["python3"].startswith("3.")
    assert seconds < 3


@pytest.mark.parametrize("shell", SHELLS[:2])
def test_a_bare_node_has_no_tools(shell: list[str], tmp_path: Path) -> None:
    tools = TOOLS.parse(ask(shell, TOOLS, PATH=str(tmp_path))[0])
    assert tools is not None
    assert tools.keys() <= {"sftp-server"}


@pytest.mark.parametrize("shell", SHELLS)
def test_system_is_this_machine(shell: list[str]) -> None:
    system = SYSTEM.parse(ask(shell, SYSTEM)[0])
    assert system is not None
    seen = os.uname()
    assert (system.kernel, system.machine) == (f"{seen.sysname} {seen.release}", seen.machine)
    assert system.uid == os.getuid()
    assert system.cpus == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("shell", SHELLS)
def test_space_is_what_statvfs_says(shell: list[str], tmp_path: Path) -> None:
    space = SPACE.parse(ask(shell, SPACE, HOME=str(tmp_path))[0])
    assert space is not None
    seen = os.statvfs(tmp_path)
    assert space["~"] == pytest.approx(seen.f_bavail * seen.f_frsize, rel=0.05)


@pytest.mark.parametrize("shell", SHELLS)
def test_client_without_ssh_is_unknown(shell: list[str]) -> None:
    assert CLIENT.parse(ask(shell, CLIENT, SSH_CONNECTION="", SSH_CLIENT="")[0]) is None
    answer, _ = ask(shell, CLIENT, SSH_CONNECTION="", SSH_CLIENT="10.0.0.7 50022 22")
    assert CLIENT.parse(answer) == Client("10.0.0.7", 50022, None, 22)


# Facts


def test_unknown_is_none() -> None:
    assert Facts().get(TOOLS) is None


def test_a_parser_that_raises_leaves_the_fact_unknown() -> None:
    broken: Probe[int] = Probe("broken", "true", int)
    assert Facts({"broken": "not a number"}).get(broken) is None
    assert Facts({"broken": "7"}).get(broken) == 7


def test_newer_answers_cover_older_ones() -> None:
    facts = Facts({"ports": "22 open", "dht": "silent"}, 1.0)
    newer = facts.updated({"ports": "22 refused"}, 2.0)
    assert (newer.get(PORTS), newer.taken) == ({22: "refused"}, 2.0)
    assert facts.get(PORTS) == {22: "open"}
    assert newer.without(PORTS).answers == {"dht": "silent"}


PLACES_SEEN = [
    ("8780 open", None, "open", "open"),
    (None, None, "not seen", "not seen"),
    ("8780 open", "8780 filtered a\n8780 open b", "open at b and filtered at a", "open at b"),
    ("8780 open", "8780 open b\n8780 open a", "open at b and a", "open at b and a"),
    ("8780 filtered", "8780 filtered a\n8780 filtered b", "filtered at a and b", "filtered"),
    ("8780 filtered", "8780 unreachable a\n8780 filtered b", "filtered at b and unreachable at a", "filtered"),
    ("8780 refused", "6881 open b", "refused", "refused"),
]


@pytest.mark.parametrize(("ports", "places", "everywhere", "best"), PLACES_SEEN)
def test_where_a_port_was_seen_in_words(ports: str | None, places: str | None, everywhere: str, best: str) -> None:
    answers = {name: text for name, text in (("ports", ports), ("places", places)) if text is not None}
    assert port_in_words(Facts(answers), 8780) == everywhere
    assert port_in_words(Facts(answers), 8780, everywhere=False) == best
    assert describe(Facts(answers)).get("ports") == (None if ports is None else f"8780 {best}")
    assert "places" not in describe(Facts(answers))


def test_description_is_for_the_eye() -> None:
    words = describe(
        Facts(
            {
                "tools": "have python3\nhave nc\nlisted\nversion python3 Python 3.11.2\n",
                "space": "room ~ /dev/vda 3000000000 0 1500000000 0% /\n",
                "rtt": "0.0812",
                "ports": "8780 open\n22 open\n6881 filtered",
                "reach": "filtered",
                "dht": "silent",
                "clean": "yes",
                "client": "client 198.51.100.7 50022 22",
            }
        )
    )
    assert words == {
        "tools": "python3 3.11.2, nc",
        "space": "~ 1.397 TiB",
        "rtt": "81.2 ms",
        "client": "sees us at 198.51.100.7",
        "ports": "22 open, 6881 filtered, 8780 open",
        "reach": "cannot reach us",
        "dht": "silent",
        "clean": "yes",
    }


def test_description_cannot_speak_to_the_terminal() -> None:
    evil = "uname=Linux n 6.1 x86_64\nos=\x1b]0;owned\x07 \udcff\n"
    words = describe(Facts({"system": evil, "theirs": "\x1b[2Jgone\nsecond line"}))
    assert words["theirs"] == "?[2Jgone"
    assert all(word.isprintable() for word in words.values())
