"""What ssh_config says of a node: asked of `ssh -G`, never worked out here."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shlex
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from rrmove.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rrmove.model import Node

# `ssh -G` answers in about 8 ms; only a `Match exec` or a slow resolver in ssh_config takes longer.
_PATIENCE = 10.0
BULK = 64 << 20  # bytes from which on a quicker cipher brings more than asking for it costs
_FAST = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_INCLUDE_DEPTH = 16  # READCONF_MAX_DEPTH in OpenSSH's readconf.c
_LINE = re.compile(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(.*)")
# What OpenSSH 9.6's valid_hostname() and valid_ruser() turn down, and for the same reason: these
# words reach a shell through ProxyCommand. `\` and `$` stay legal in user names (DOMAIN\user).
# `@` and `/` besides: ssh would take `a@b` and `ssh://a/b` apart where one host was meant.
_UNFIT_HOST = re.compile(r"^-|[\s\x00-\x20\x7f'`\"$\\;&<>|(){}@/]")
_UNFIT_USER = re.compile(r"^-|[\s\x00-\x20\x7f'`\";&<>|(){}]|\\$")


@dataclass(frozen=True, slots=True, kw_only=True)
class SSHConfig:
    """What `ssh` would do to reach a node.

    `identityfiles` are as ssh printed them, `~` and all. `options` has every line that it
    printed: the keyword in lower case, and its values in order.
    """

    hostname: str
    port: int
    user: str
    proxyjump: str | None = None
    proxycommand: str | None = None
    identityfiles: tuple[str, ...] = ()
    controlpath: str | None = None
    ciphers: str = ""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))


def check_host(word: str) -> str:
    """Give a host name back that is safe on ssh's command line.

    Raises UsageError where it begins with `-` or has a character that no host name has.
    """
    if not word or _UNFIT_HOST.search(word):
        raise UsageError(f"{word!r} is no host name", remedy="Give a host name, an alias or an IP address")
    return word


def check_user(word: str) -> str:
    """Give a user name back that is safe on ssh's command line; raises UsageError else."""
    if not word or _UNFIT_USER.search(word):
        raise UsageError(f"{word!r} is no user name", remedy="Write it as user@host")
    return word


def destination(node: Node) -> str:
    """Give the host word that ssh is called with; raises UsageError where it is not safe."""
    return check_host(node.ssh.host or node.name)


def argv_options(node: Node) -> tuple[str, ...]:
    """Give the flags that a node's settings amount to: -F, -p, -l, -i, each where it is set."""
    options: list[str] = []
    if node.ssh.config is not None:
        options += ["-F", str(node.ssh.config)]
    if node.ssh.port is not None:
        options += ["-p", str(node.ssh.port)]
    if node.ssh.user is not None:
        options += ["-l", check_user(node.ssh.user)]
    if node.ssh.identity is not None:
        options += ["-i", str(node.ssh.identity)]
    return tuple(options)


def direct(config: SSHConfig) -> bool:
    """Tell whether a TCP connection to `hostname` and `port` is the way: no proxy, no jump."""
    return config.proxyjump is None and config.proxycommand is None


def parse_ssh_g(text: str) -> SSHConfig:
    """Read what `ssh -G` printed. Raises UsageError where there is no host name or port in it."""
    options: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        keyword, _, value = line.strip().partition(" ")
        if keyword:
            # Case varies between versions: "canonicalizePermittedcnames".
            key = keyword.lower()
            options[key] = (*options.get(key, ()), value.strip())

    def one(key: str) -> str | None:
        value = options.get(key, ("",))[0]
        return None if value in ("", "none") else value

    hostname, port = one("hostname"), one("port")
    if hostname is None or port is None or not port.isascii() or not port.isdigit():
        raise UsageError("`ssh -G` gave no host name and port", remedy="Look at what `ssh -G HOST` prints")
    return SSHConfig(
        hostname=hostname,
        port=int(port),
        user=one("user") or "",
        proxyjump=one("proxyjump"),
        proxycommand=one("proxycommand"),
        identityfiles=tuple(name for name in options.get("identityfile", ()) if name != "none"),
        controlpath=one("controlpath"),
        ciphers=one("ciphers") or "",
        options=MappingProxyType(options),
    )


def effective_sync(node: Node, ssh: str = "ssh") -> SSHConfig | None:
    """Ask ssh what it would do for a node; blocks for about 8 ms.

    None where there is no ssh program. Raises UsageError, in ssh's own words, where ssh_config is
    broken. Nothing is connected; a repeat asks again.
    """
    import subprocess

    argv = _question(node, ssh)
    try:
        answer = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False)
    except (FileNotFoundError, PermissionError):
        return None
    except subprocess.TimeoutExpired:
        raise _silent(node, argv) from None
    return _understood(node, argv, answer.returncode, answer.stdout, answer.stderr)


async def effective(node: Node, ssh: str = "ssh") -> SSHConfig | None:
    """Ask ssh what it would do for a node, as `effective_sync` does; cancellation ends it."""
    import asyncio

    argv = _question(node, ssh)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError):
        return None
    try:
        async with asyncio.timeout(_PATIENCE):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        raise _silent(node, argv) from None
    finally:
        if process.returncode is None:
            # The whole group: a `Match exec` may have started programs of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return _understood(node, argv, process.returncode or 0, stdout, stderr)


def fast_ciphers(node: Node, ssh: str = "ssh") -> tuple[str, ...]:
    """Give the flags that put AES-GCM first, where nobody has chosen ciphers; blocks for about 10 ms.

    With AES instructions it moves a fifth more than the default, ChaCha20 (measured over loopback,
    0.67 against 0.55 of the best); what the user's or the system's ssh_config says stands. Gives
    nothing where this processor has no AES instructions, or ssh cannot be asked. Raises nothing.
    """
    import subprocess

    try:
        if " aes" not in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"):
            return ()
        # What ssh would do here, against what it does where no file tells it anything.
        asked = (_question(node, ssh), [ssh, "-G", "-F", "none", "--", "localhost"])
        processes = [
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            for argv in asked
        ]
        answers = [
            parse_ssh_g(process.communicate(timeout=_PATIENCE)[0].decode("utf-8", "replace")).ciphers
            for process in processes
        ]
    except (OSError, UsageError, subprocess.TimeoutExpired):
        return ()
    here, default = answers
    if here != default or _FAST[0] not in default.split(","):
        return ()
    rest = [cipher for cipher in default.split(",") if cipher not in _FAST]
    return ("-o", f"Ciphers={','.join((*_FAST, *rest))}")


def host_names(config: Path | None = None) -> tuple[str, ...]:
    """List the names that ssh_config's `Host` lines spell out, in order, each once.

    `config` stands for the user's file, as with `ssh -F`; None reads the user's and the system's.
    ssh cannot list what it knows, so the words after `Host` are collected here, through every
    `Include`. Patterns are left out. That is all that is read by hand: what a name *means* is
    `effective()`'s to say. Files that cannot be read have no names.
    """
    home = _home()
    if config is not None:
        files = [(config, home / ".ssh")]
    else:
        files = [
            (home / ".ssh/config", home / ".ssh"),
            (Path("/etc/ssh/ssh_config"), Path("/etc/ssh")),
        ]
    names: dict[str, None] = {}
    for path, folder in files:
        for word in _host_words(path, folder, _INCLUDE_DEPTH):
            if not re.search(r"[*?!]", word) and not _UNFIT_HOST.search(word):
                names[word] = None
    return tuple(names)


def _host_words(path: Path, folder: Path, depth: int) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        keyword = match[1].lower() if match else ""
        if match and keyword == "host":
            yield from _words(match[2])
        elif match and keyword == "include" and depth:
            for pattern in _words(match[2]):
                for name in sorted(glob.glob(str(folder / _expanded(pattern)))):  # noqa: PTH207
                    yield from _host_words(Path(name), folder, depth - 1)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # an open quote: ssh says so itself when it is asked for a host
        return []


def _expanded(pattern: str) -> str:
    return str(_home() / pattern[2:]) if pattern.startswith("~/") else pattern


def _home() -> Path:
    # ssh looks its user up and does not ask $HOME; whoever lists its hosts has to do the same.
    try:
        import pwd
    except ImportError:
        return Path.home()
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path.home()


def _question(node: Node, ssh: str) -> list[str]:
    # -T: without it ssh says on stderr that no terminal will be had.
    return [ssh, "-G", "-T", *argv_options(node), "--", destination(node)]


def _understood(node: Node, argv: list[str], returncode: int, stdout: bytes, stderr: bytes) -> SSHConfig:
    if returncode:
        words = "; ".join(stderr.decode(errors="replace").strip().splitlines())
        raise UsageError(
            f"ssh does not take its configuration: {words or f'exit status {returncode}'}",
            node=node.name,
            tried=" ".join(argv),
            remedy="Mend the line that ssh names",
        )
    return parse_ssh_g(stdout.decode(errors="replace"))


def _silent(node: Node, argv: list[str]) -> UsageError:
    return UsageError(
        f"ssh did not say within {_PATIENCE:.0f} s what its configuration is",
        node=node.name,
        tried=" ".join(argv),
        remedy="Look for a `Match exec` in ssh_config that hangs, or for a name server that does",
    )
