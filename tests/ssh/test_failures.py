"""What ssh and the node's file system say, and what we make of it: tables of real texts."""

from __future__ import annotations

import errno
import shutil
import subprocess

import pytest

from rrmove.errors import Fatal, RRMoveError, Transient, TransportError, Unusable
from rrmove.ssh.failures import HostKeyError, NoLogin, NoPython, StaleError, explain_login, explain_operation

CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Someone could be eavesdropping on you right now (man-in-the-middle attack)!
It is also possible that a host key has just been changed.
The fingerprint for the ED25519 key sent by the remote host is
SHA256:8H1Ujn3kkQm0SxAFLFKOVVAa8dFxk9YBxbQwYtwp0ps.
Please contact your system administrator.
Add correct host key in /home/u/.ssh/known_hosts to get rid of this message.
Offending ED25519 key in /home/u/.ssh/known_hosts:3
Host key for [203.0.113.9]:22022 has changed and you have requested strict checking.
Host key verification failed.
"""
UNPROTECTED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@         WARNING: UNPROTECTED PRIVATE KEY FILE!          @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
Permissions 0644 for '/home/u/.ssh/id' are too open.
It is required that your private key files are NOT accessible by others.
This private key will be ignored.
Load key "/home/u/.ssh/id": bad permissions
ubuntu@203.0.113.9: Permission denied (publickey).
"""

# What ssh wrote, the class, a word of ours that says it, and a word of the remedy.
LOGINS: list[tuple[str, type[RRMoveError], str, str]] = [
    (CHANGED, HostKeyError, "not the one that is known", "ssh-keygen -R HOST"),
    (
        (
            "No ED25519 host key is known for [203.0.113.9]:22022 and you have requested strict checking.\n"
            "Host key verification failed.\n"
        ),
        HostKeyError,
        "host key is unknown",
        "known_hosts",
    ),
    ("Host key verification failed.", HostKeyError, "host key is unknown", "fingerprint"),
    ("ubuntu@203.0.113.9: Permission denied (publickey).", Fatal, "authentication was refused", "ssh -v HOST"),
    ("u@h: Permission denied (publickey,password,keyboard-interactive).", Fatal, "authentication", "authorized_keys"),
    (
        (
            "Received disconnect from 203.0.113.9 port 22:2: Too many authentication failures\n"
            "Disconnected from 203.0.113.9 port 22\n"
        ),
        Fatal,
        "authentication was refused",
        "keys",
    ),
    ("sign_and_send_pubkey: no mutual signature supported", Fatal, "authentication was refused", "keys"),
    (
        "ssh: Could not resolve hostname nosuch.example: Name or service not known",
        Fatal,
        "no host of that name",
        "rrmove nodes",
    ),
    (
        "ssh: Could not resolve hostname nosuch: nodename nor servname provided, or not known",
        Fatal,
        "no host of that name",
        "rrmove nodes",
    ),
    (
        "ssh: Could not resolve hostname node.example: Temporary failure in name resolution",
        NoLogin,
        "cannot be resolved just now",
        "DNS",
    ),
    ("ssh: connect to host 127.0.0.1 port 1: Connection refused", NoLogin, "nothing listens", "port"),
    ("ssh: connect to host 203.0.113.9 port 22: Connection timed out", NoLogin, "does not answer", "firewalls"),
    ("ssh: connect to host 203.0.113.9 port 22: No route to host", NoLogin, "does not answer", "firewalls"),
    ("ssh: connect to host 203.0.113.9 port 22: Network is unreachable", NoLogin, "does not answer", "address"),
    ("Connection timed out during banner exchange", NoLogin, "does not answer", "ssh -v HOST"),
    (
        "kex_exchange_identification: read: Connection reset by peer\nConnection reset by 203.0.113.9 port 22\n",
        NoLogin,
        "before the login",
        "MaxStartups",
    ),
    (
        "kex_exchange_identification: Connection closed by remote host\nConnection closed by 203.0.113.9 port 22\n",
        NoLogin,
        "before the login",
        "PerSourcePenalties",
    ),
    ("kex_exchange_identification: banner line contains invalid characters", NoLogin, "before the login", "wait"),
    ("ssh_exchange_identification: Connection closed by remote host", NoLogin, "before the login", "wait"),
    ("Connection closed by 203.0.113.9 port 22", NoLogin, "before the login", "wait"),
    ("Not allowed at this time", NoLogin, "before the login", "wait"),
    (
        "Unable to negotiate with 203.0.113.9 port 22: no matching host key type found. Their offer: ssh-dss",
        Fatal,
        "no algorithm in common",
        "ssh_config",
    ),
    (
        (
            "/home/u/.ssh/config: line 3: Bad configuration option: nonsense\n"
            "/home/u/.ssh/config: terminating, 1 bad configuration options\n"
        ),
        Fatal,
        "refuses its configuration",
        "ssh -G HOST",
    ),
    ("Bad owner or permissions on /home/u/.ssh/config", Fatal, "refuses its configuration", "ssh_config"),
    ("Can't open user config file /nowhere: No such file or directory", Fatal, "refuses its configuration", "-G"),
    ("client_loop: send disconnect: Broken pipe", Transient, "connection was lost", ""),
    ("Connection reset by 203.0.113.9 port 22", Transient, "connection was lost", ""),
    ("Read from remote host 203.0.113.9: Connection reset by peer", Transient, "connection was lost", ""),
    ("Connection to 203.0.113.9 closed by remote host.", Transient, "connection was lost", ""),
    ("mux_client_request_session: session request failed: Session open refused by peer", NoLogin, "before", "wait"),
    # What the node's start-up files complain of is no refusal by sshd.
    ("bash: /opt/conda/etc/profile: Permission denied", Transient, "ended with status 255", ""),
    (
        'Load key "/home/u/.ssh/old": invalid format\nclient_loop: send disconnect: Broken pipe\n',
        Transient,
        "connection was lost",
        "",
    ),
    ("", Transient, "ended with status 255", ""),
    ("who knows", Transient, "ended with status 255", ""),
]


@pytest.mark.parametrize(("words", "kind", "what", "remedy"), LOGINS, ids=[words[:50] or "-" for words, *_ in LOGINS])
def test_login(words: str, kind: type[RRMoveError], what: str, remedy: str) -> None:
    error = explain_login(words, 255, node="gpu-3", host="HOST")
    assert type(error) is kind
    assert what in error.what
    assert remedy in (error.remedy or "")
    assert error.node == "gpu-3"
    assert "{" not in str(error)
    assert "\n" not in str(error)
    if kind is not Transient:  # every login that fails says what to do, and what ssh said itself
        assert error.remedy
        said = [line.strip("@ ") for line in words.splitlines() if line.strip("@ ")]
        assert any(line in (error.tried or "") for line in said)


def test_the_remedy_for_a_changed_key_is_the_one_that_ssh_gives() -> None:
    mend = 'ssh-keygen -f "/home/u/.ssh/known_hosts" -R "[203.0.113.9]:22022"'
    words = CHANGED.replace("Host key for", f"  remove with:\n  {mend}\nHost key for")
    error = explain_login(words, 255, node="gpu-3", host="alias")
    assert f"`{mend}`" in (error.remedy or "")


@pytest.mark.parametrize(
    "words",
    [
        UNPROTECTED,
        'Load key "/home/u/.ssh/id": invalid format\nu@h: Permission denied (publickey).\n',
        'Load key "/home/u/.ssh/id": error in libcrypto\nu@h: Permission denied (publickey).\n',
        'Load key "/home/u/.ssh/id": Permission denied\nu@h: Permission denied (publickey).\n',
    ],
)
def test_a_key_file_that_ssh_will_not_use_is_named_as_the_cause(words: str) -> None:
    # ssh ends with the refusal by the server all the same.
    error = explain_login(words, 255, node="n", host="h")
    assert type(error) is Fatal
    assert "private key" in error.what
    assert "chmod 600" in (error.remedy or "")


@pytest.mark.parametrize(
    ("words", "hopeless"),
    [
        ("ssh: connect to host 203.0.113.9 port 22: Connection timed out", True),
        ("ssh: connect to host 203.0.113.9 port 22: No route to host", True),
        ("ssh: connect to host 203.0.113.9 port 22: Connection refused", False),
        ("kex_exchange_identification: Connection closed by remote host", False),
    ],
)
def test_which_first_logins_are_hopeless(words: str, hopeless: bool) -> None:  # noqa: FBT001
    error = explain_login(words, 255, node="n", host="h")
    assert isinstance(error, NoLogin)
    assert error.hopeless is hopeless


def test_long_words_are_cut_from_the_front() -> None:
    error = explain_login("banner " * 1000 + "\nHost key verification failed.", 255, node="n", host="h")
    assert len(error.tried or "") < 600
    assert (error.tried or "").endswith("Host key verification failed.")


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here")
@pytest.mark.parametrize(
    ("options", "host", "kind", "what"),
    [
        (["-p", "1"], "127.0.0.1", NoLogin, "nothing listens"),
        ([], "no-such-host.invalid", TransportError, "resolve|no host of that name"),
        (["-o", "Nonsense=yes"], "127.0.0.1", Fatal, "configuration"),
        (["-F", "/nowhere/at/all"], "127.0.0.1", Fatal, "configuration"),
    ],
)
def test_the_client_of_this_machine_is_understood(
    options: list[str], host: str, kind: type[RRMoveError], what: str
) -> None:
    argv = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", *options, host, "true"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL)
    error = explain_login(ended.stderr, ended.returncode, node="n", host=host)
    assert isinstance(error, kind), str(error)
    assert any(word in error.what for word in what.split("|")), str(error)


# Operations

OPERATIONS: list[tuple[str, str, type[RRMoveError], str]] = [
    ("open", "ENOSPC", Fatal, "disk is full"),
    ("put", "ENOSPC", Fatal, "disk is full"),
    ("put", "EDQUOT", Fatal, "disk is full"),
    ("put", "EFBIG", Fatal, "disk is full"),
    ("open", "EACCES", Fatal, "no permission"),
    ("commit", "EPERM", Fatal, "no permission"),
    ("open", "EROFS", Fatal, "no permission"),
    ("locate", "ENOTDIR", Fatal, "destination cannot be used"),
    ("commit", "EISDIR", Fatal, "destination cannot be used"),
    ("locate", "ENAMETOOLONG", Fatal, "destination cannot be used"),
    ("locate", "ELOOP", Fatal, "destination cannot be used"),
    ("put", "EIO", Fatal, "disk failed"),
    ("nonsense", "ENOSYS", Unusable, "TEXT"),
    ("run", "ENOENT", Unusable, "TEXT"),  # the program is not there: no part file is concerned
    ("run", "EACCES", Unusable, "TEXT"),
    ("run", "ETIMEDOUT", StaleError, "run failed"),
    ("put", "ENOENT", StaleError, "put failed"),
    ("commit", "ESTALE", StaleError, "commit failed"),
    ("commit", "EBADMSG", StaleError, "commit failed"),
    ("evict", "EBUSY", StaleError, "evict failed"),
]


@pytest.mark.parametrize(("op", "name", "kind", "what"), OPERATIONS)
def test_operation(op: str, name: str, kind: type[RRMoveError], what: str) -> None:
    error = explain_operation(op, {"errno": name, "text": "TEXT"}, node="gpu-3", path="/data/file")
    assert type(error) is kind
    assert what in error.what
    assert "TEXT" in error.what
    assert error.node == "gpu-3"
    assert error.tried in {"/data/file", op}
    if isinstance(error, StaleError):
        assert error.name == name
    if kind is Fatal:
        assert error.remedy


@pytest.mark.parametrize("op", ["put", "commit", "hash", "open", "locate"])
def test_no_errno_passes_for_success_or_crashes(op: str) -> None:
    for name in [*errno.errorcode.values(), "EPROTO", "", "None"]:
        error = explain_operation(op, {"errno": name, "text": "TEXT"}, node="n", path="/p")
        assert isinstance(error, TransportError)
    assert isinstance(explain_operation(op, {}, node="n", path="/p"), TransportError)


def test_a_full_disk_says_how_much_is_missing() -> None:
    fields = {"errno": "ENOSPC", "text": "No space left on device", "need": 5 << 30, "free": 2 << 30}
    error = explain_operation("open", fields, node="n", path="/data")
    assert isinstance(error, Fatal)
    for words in ("5.37 GB are needed", "2.15 GB are free", "3.22 GB are missing"):
        assert words in error.what


def test_what_kind_of_transient_they_are() -> None:
    # The straight line treats each of them by its own rule; none may become another's subclass.
    assert issubclass(NoLogin, Transient)
    assert issubclass(NoPython, Transient)
    assert issubclass(StaleError, Transient)
    assert not issubclass(NoPython, NoLogin)
    assert not issubclass(StaleError, NoLogin)
