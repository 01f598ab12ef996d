"""What `ssh -G` says, recorded and asked anew; and the names in ssh_config."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrmove.errors import UsageError
from rrmove.model import Node, SSHSettings
from rrmove.ssh.config import (
    SSHConfig,
    argv_options,
    check_host,
    destination,
    direct,
    effective,
    effective_sync,
    host_names,
    parse_ssh_g,
)

CASES = Path(__file__).parent / "cases"
GCM = "aes128-gcm@openssh.com,aes256-gcm@openssh.com"

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh program")


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            "openssh-9.2-plain",
            {
                "hostname": "203.0.113.9",
                "port": 22022,
                "user": "ubuntu",
                "proxyjump": None,
                "proxycommand": None,
                "controlpath": None,
                "identityfiles": ("~/.ssh/id_cluster",),
            },
        ),
        ("openssh-9.2-jumped", {"hostname": "10.0.0.7", "proxyjump": "ops@bastion.example.com:2222,second"}),
        (
            "openssh-9.2-proxied",
            {"hostname": "proxied", "proxycommand": "nc -X 5 -x 127.0.0.1:1055 %h %p", "proxyjump": None},
        ),
        ("openssh-9.2-shared", {"controlpath": "/root/.ssh/cm-root@shared:22", "ciphers": GCM}),
        ("openssh-9.2-bare", {"identityfiles": (), "proxyjump": None, "controlpath": None}),
    ],
)
def test_recorded_answers(case: str, expected: dict[str, Any]) -> None:
    config = parse_ssh_g((CASES / f"{case}.txt").read_text())
    assert {key: getattr(config, key) for key in expected} == expected
    assert direct(config) == (config.proxyjump is None and config.proxycommand is None)


def test_options_keep_every_line_in_order() -> None:
    options = parse_ssh_g((CASES / "openssh-9.2-bare.txt").read_text()).options
    assert options["setenv"] == ("A=1", "B=2")
    assert "canonicalizepermittedcnames" in options


@pytest.mark.parametrize(
    "text", ["", "user a\n", "hostname a\n", "hostname a\nport ssh\n", "hostname a\nport \u0665\n"]
)
def test_an_answer_without_host_or_port_is_an_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ssh_g(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        config = parse_ssh_g(text)
    except UsageError:
        return
    assert config.hostname


def config_file(folder: Path, text: str) -> Path:
    path = folder / "ssh_config"
    path.write_text(text)
    return path


@needs_ssh
def test_ssh_is_asked(tmp_path: Path) -> None:
    path = config_file(tmp_path, "Host gpu\n  HostName 203.0.113.9\n  Port 22022\n  User ubuntu\n")
    node = Node(name="gpu", ssh=SSHSettings(config=path))
    config = effective_sync(node)
    assert isinstance(config, SSHConfig)
    assert (config.hostname, config.port, config.user) == ("203.0.113.9", 22022, "ubuntu")
    assert asyncio.run(effective(node)) == config
    identity = tmp_path / "key"
    identity.touch()  # ssh passes over one that is not there
    over = Node(name="x", ssh=SSHSettings(host="gpu", config=path, port=7, user="me", identity=identity))
    told = effective_sync(over)
    assert told is not None
    assert (told.hostname, told.port, told.user) == ("203.0.113.9", 7, "me")
    assert told.identityfiles == (str(identity),)


@needs_ssh
def test_a_broken_ssh_config_is_told_in_the_words_of_ssh(tmp_path: Path) -> None:
    node = Node(name="gpu", ssh=SSHSettings(config=config_file(tmp_path, "Host gpu\n  Frobnicate yes\n")))
    for ask in (effective_sync, lambda node: asyncio.run(effective(node))):
        with pytest.raises(UsageError, match=r"line 2: Bad configuration option: frobnicate") as caught:
            ask(node)
        assert caught.value.node == "gpu"
        assert caught.value.remedy


def test_without_an_ssh_program_there_is_no_answer(tmp_path: Path) -> None:
    node = Node(name="gpu")
    missing = str(tmp_path / "ssh")
    assert effective_sync(node, missing) is None
    assert asyncio.run(effective(node, missing)) is None


def test_cancellation_leaves_no_process(tmp_path: Path) -> None:
    slow = tmp_path / "ssh"
    slow.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/pid\nwait\n")
    slow.chmod(0o755)

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await effective(Node(name="gpu"), str(slow))

    asyncio.run(cancelled())
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A zombie that nobody has waited for yet is no process that runs.
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    "word", ["", "-oProxyCommand=id", "a b", "a\nb", "a;b", "$(id)", "`id`", "u@h", "ssh://h/p", "a\0b", "a|b", "..\\x"]
)
def test_unsafe_host_words_are_impossible(word: str) -> None:
    with pytest.raises(UsageError):
        check_host(word)
    with pytest.raises(UsageError):
        destination(Node(name="fine" if word else "", ssh=SSHSettings(host=word)))
    with pytest.raises(UsageError):
        effective_sync(Node(name=word))


@pytest.mark.parametrize("word", ["gpu-3", "10.0.0.1", "2001:db8::1", "fe80::1%eth0", "a.b_c", "ssh5.vast.ai"])
def test_safe_host_words(word: str) -> None:
    assert destination(Node(name=word)) == word


def test_flags_are_what_is_set() -> None:
    assert argv_options(Node(name="x")) == ()
    settings = SSHSettings(config=Path("/c"), port=7, user="me", identity=Path("/k"))
    assert argv_options(Node(name="x", ssh=settings)) == ("-F", "/c", "-p", "7", "-l", "me", "-i", "/k")
    with pytest.raises(UsageError):
        argv_options(Node(name="x", ssh=SSHSettings(user="-oProxyCommand=id")))


def test_names_are_the_words_of_host_lines(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.conf").write_text("Host from-a\n")
    (tmp_path / "more/b.conf").write_text(f"host from-b\nInclude {tmp_path}/ssh_config\n")  # a circle
    path = config_file(
        tmp_path,
        "# Host commented\n"
        "Host alpha beta  # and a remark\n"
        "  HostName 203.0.113.9\n"
        'HOST="quoted" gpu-* !not ?\n'
        "Host = spaced\n"
        "\thost\ttabbed alpha\n"
        f"Include {tmp_path}/more/*.conf {tmp_path}/missing\n"
        "HostKeyAlias nothing\n"
        'Host "open\n'
        "Host -oProxyCommand=id\n"
        "Match host matched\n",
    )
    assert host_names(path) == ("alpha", "beta", "quoted", "spaced", "tabbed", "from-a", "from-b")
    assert host_names(tmp_path / "missing") == ()


@needs_ssh
def test_every_listed_name_is_one_that_ssh_takes(tmp_path: Path) -> None:
    path = config_file(tmp_path, 'Host=alpha beta\n HostName 203.0.113.9\nHost "quoted" gpu-*\n HostName 203.0.113.9\n')
    for name in host_names(path):
        config = effective_sync(Node(name=name, ssh=SSHSettings(config=path)))
        assert config is not None
        assert config.hostname == "203.0.113.9", name
