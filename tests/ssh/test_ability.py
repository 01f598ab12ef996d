"""What of ssh_config our own client honours: the table of cases behind `rrmove.ssh.ability`."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rrmove.ssh.ability import only_ssh_can

PLAIN = {"user": ("root",), "port": ("22",), "ciphers": ("a,b",), "identityfile": ("~/.ssh/id_none",)}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, None),
        ({"user": ("ubuntu",), "port": ("22022",), "hostname": ("203.0.113.9",)}, None),
        ({"gssapiauthentication": ("yes",), "sendenv": ("LANG", "LC_*"), "hashknownhosts": ("yes",)}, None),
        ({"localforward": ("8080 localhost:80",), "forwardagent": ("yes",)}, None),
        ({"controlmaster": ("auto",), "controlpath": ("/nowhere/master",)}, None),
        ({"proxyjump": ("bastion",)}, "proxyjump"),
        ({"proxycommand": ("nc %h %p",)}, "proxycommand"),
        ({"ciphers": ("a",)}, "ciphers"),
        ({"setenv": ("A=b",)}, "setenv"),
        ({"certificatefile": ("/x",)}, "certificatefile"),
        ({"identityagent": ("/x",)}, "identityagent"),
        ({"bindaddress": ("10.0.0.1",)}, "bindaddress"),
        ({"compression": ("yes",)}, "compression"),
        ({"a-keyword-of-a-later-ssh": ("yes",)}, "a-keyword-of-a-later-ssh"),
    ],
)
def test_what_is_not_known_to_be_harmless_is_left_to_ssh(
    said: dict[str, tuple[str, ...]], expected: str | None
) -> None:
    assert only_ssh_can(PLAIN | said, PLAIN) == expected


def test_what_a_default_has_and_the_node_has_not_counts_too() -> None:
    assert only_ssh_can({key: value for key, value in PLAIN.items() if key != "ciphers"}, PLAIN) == "ciphers"


def test_a_master_connection_that_is_there_is_used(tmp_path: Path) -> None:
    path = tmp_path / "master"
    with socket.socket(socket.AF_UNIX) as master:
        master.bind(str(path))
        assert only_ssh_can(PLAIN | {"controlpath": (str(path),)}, PLAIN) == "controlpath"


def test_a_certificate_beside_the_key_is_left_to_ssh(tmp_path: Path) -> None:
    key = tmp_path / "id"
    said = PLAIN | {"identityfile": (str(key),)}
    assert only_ssh_can(said, PLAIN) is None
    Path(f"{key}-cert.pub").write_text("x")
    assert only_ssh_can(said, PLAIN) == "certificatefile"
