"""One inventory file on its way to nodes: its tables, their types, and where in it things stand."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, cast

from rrmove.errors import UsageError
from rrmove.model import DATA_PORT, TORRENT_PORT, Address, Given, Limit, Node, Ports, SSHSettings
from rrmove.ssh.config import check_host, check_user
from rrmove.units import parse_rate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Where = tuple[str, ...]  # a table's heading: ("nodes", "gpu1")

PORTS = range(1, 65536)
ALL = "all nodes"  # the scope of the limit in [defaults]
_KINDS = ("lan", "public", "tailscale")
# Of [defaults], what ssh_config has no word for: this much holds for nodes that it alone knows.
_BEYOND_SSH = ("dest", "limit_rate", "data_port", "torrent_port")
_KNOWN = (
    *("host", "port", "user", "identity", "provider", "tags", "addresses", "transports"),
    *_BEYOND_SSH,
)


def address_kind(host: str) -> Literal["lan", "public", "tailscale"]:
    """Guess what network an address belongs to.

    100.64.0.0/10 and fd7a:115c:a1e0::/48 (Tailscale's two), and names under ts.net, are
    tailscale; what does not leave the site (RFC 1918, RFC 4193, link-local, loopback) is lan.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "tailscale" if host.lower().rstrip(".").endswith(".ts.net") else "public"

    def within(*networks: str) -> bool:
        return any(address in ipaddress.ip_network(network) for network in networks)

    if within("100.64.0.0/10", "fd7a:115c:a1e0::/48"):
        return "tailscale"
    site = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
    near = ("127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10")
    return "lan" if within(*site, *near) else "public"


class NodeFile:
    """A parsed inventory.

    Every method raises UsageError, with file, line and key, at the first value of a wrong type.
    """

    def __init__(self, path: Path, text: str, document: Mapping[str, object], ssh_hosts: tuple[str, ...]) -> None:
        self._path = path
        self._text = text
        self._document = document
        self._ssh_hosts = ssh_hosts

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the nodes, in the file's order."""
        return tuple(self._table("nodes"))

    def node(self, name: str, ssh_config: Path | None) -> Node:
        """Build one node; its own values come before its provider's, and those before defaults."""
        own = (("nodes", name), self._table("nodes", name))
        defaults = (("defaults",), self._table("defaults"))
        try:
            check_host(name)
        except UsageError as error:
            raise self.wrong(own[0], "", f"{name!r} cannot name a node", error) from error
        chosen = _Layers(self, own, defaults)
        provider = chosen.word("provider")
        if provider is not None and provider in self._table("providers"):
            chosen = _Layers(self, own, (("providers", provider), self._table("providers", provider)), defaults)
        host = chosen.host()
        # An alias of ssh_config is no address: only ssh knows what it stands for.
        address = host or (name if "." in name else None)
        if address in self._ssh_hosts:
            address = None
        first = (Address(address, address_kind(address)),) if address else ()
        rest = tuple(each for each in chosen.addresses() if each.host != address or each.port is not None)
        return Node(
            name=name,
            addresses=first + rest,
            ssh=SSHSettings(
                host=host,
                port=chosen.port("port"),
                user=chosen.user(),
                identity=chosen.identity(self._path.parent),
                config=ssh_config,
            ),
            provider=provider,
            tags=chosen.tags(),
            destination=chosen.word("dest"),
            limit_rate=_Layers(self, own).rate("limit_rate"),
            limits=self.limits(provider),
            ports=chosen.ports(),
            settings=(*self._settings(), *chosen.settings()),
            extra=chosen.extra(),
        )

    def stranger(self) -> Node:
        """Build what [defaults] says of nodes that are not in the file: ports, dest, limits."""
        chosen = _Layers(self, (("defaults",), self._table("defaults")))
        return Node(
            name="",
            destination=chosen.word("dest"),
            limits=self.limits(None),
            ports=chosen.ports(),
            settings=self._settings(),
        )

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that have a table, in the file's order."""
        return tuple(self._table("providers"))

    def limits(self, provider: str | None) -> tuple[Limit, ...]:
        """Give the limits that a node shares: its provider's, which that one's nodes have together, and all nodes'."""
        tables = [("providers", provider)] if provider is not None and provider in self._table("providers") else []
        found = []
        for where in (*tables, ("defaults",)):
            rate = _Layers(self, (where, self._table(*where))).rate("limit_rate")
            if rate is not None:
                found.append(Limit(f"provider {provider}" if where != ("defaults",) else ALL, rate))
        return tuple(found)

    def _settings(self) -> tuple[Given, ...]:
        """Give what [transports.NAME] says, which holds for all nodes."""
        return tuple(self.given((), self._table()))

    def given(self, where: Where, table: Mapping[str, object]) -> Iterator[Given]:
        """Give what the `transports` of a table say to each of them."""
        transports = table.get("transports", {})
        if not isinstance(transports, dict):
            raise self.wrong(where, "transports", f"must be a table, not {_shown(transports)}")
        for name, said in transports.items():
            if not isinstance(said, dict):
                raise self.wrong((*where, "transports"), name, f"must be a table, not {_shown(said)}")
            heading = ".".join((*where, "transports", name))
            for key, value in said.items():
                yield Given(name, key, value, f"[{heading}] in {self._path}")

    def _table(self, *where: str) -> Mapping[str, object]:
        table: object = self._document
        for depth, key in enumerate(where):
            table = cast("Mapping[str, object]", table).get(key, {})
            if not isinstance(table, dict):
                raise self.wrong(where[:depth], key, f"must be a table, not {_shown(table)}")
        return cast("Mapping[str, object]", table)

    def wrong(self, where: Where, key: str, what: str, cause: UsageError | None = None) -> UsageError:
        """Say what is wrong with a key, and where it stands; for the caller to raise."""
        line = _line_of(self._text, where, key)
        heading = f"[{'.'.join(where)}] " if where else ""
        said = f"{heading}{key} {what}" if key else f"{heading}{what}"
        return UsageError(f"{self._path}, line {line}: {said}", remedy=cause.remedy if cause else None)


class _Layers:
    """The tables that have a say in one node, the first to speak wins."""

    def __init__(self, file: NodeFile, *layers: tuple[Where, Mapping[str, object]]) -> None:
        self._file = file
        self._layers = layers

    def wrong(self, key: str, what: str, cause: UsageError | None = None) -> UsageError:
        where = next(where for where, table in self._layers if key in table)
        return self._file.wrong(where, key, what, cause)

    def value(self, key: str) -> object:
        return next((table[key] for _, table in self._layers if key in table), None)

    def word(self, key: str) -> str | None:
        value = self.value(key)
        if value is None or isinstance(value, str):
            return value
        raise self.wrong(key, f"must be a string, not {_shown(value)}")

    def host(self) -> str | None:
        word = self.word("host")
        try:
            return None if word is None else check_host(word.strip("[]"))
        except UsageError as error:
            raise self.wrong("host", f"must be a host name or an IP address, not {word!r}", error) from error

    def user(self) -> str | None:
        word = self.word("user")
        try:
            return None if word is None else check_user(word)
        except UsageError as error:
            raise self.wrong("user", f"must be a user name, not {word!r}", error) from error

    def identity(self, folder: Path) -> Path | None:
        word = self.word("identity")
        # Relative to the file, which stays where it is, and not to wherever one happens to be.
        return None if word is None else folder / Path(word).expanduser()

    def port(self, key: str) -> int | None:
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value in PORTS:
            return value
        raise self.wrong(key, f"must be a number from 1 to 65535, not {_shown(value)}")

    def ports(self) -> Ports:
        return Ports(
            data=self.port("data_port") or DATA_PORT,
            torrent=self.port("torrent_port") or TORRENT_PORT,
        )

    def rate(self, key: str) -> float | None:
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.wrong(key, f"must be a rate like '50M' or a number of bytes, not {_shown(value)}")
        try:
            return parse_rate(value if isinstance(value, str) else format(value, ".9f"))
        except UsageError as error:
            raise self.wrong(key, f"must be a rate above zero like '50M', not {_shown(value)}", error) from error

    def tags(self) -> frozenset[str]:
        value = self.value("tags")
        if value is None:
            return frozenset()
        if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
            return frozenset(value)
        raise self.wrong("tags", f"must be a list of strings, not {_shown(value)}")

    def addresses(self) -> Iterator[Address]:
        value = self.value("addresses")
        if value is None:
            return
        if not isinstance(value, list):
            raise self.wrong("addresses", f"must be a list, not {_shown(value)}")
        for entry in value:
            table = {"host": entry} if isinstance(entry, str) else entry
            if not isinstance(table, dict) or not isinstance(table.get("host"), str):
                raise self.wrong("addresses", f"must hold strings or tables with a host, not {_shown(entry)}")
            host = table["host"].strip("[]")
            kind = table.get("kind", None)
            if kind is not None and kind not in _KINDS:
                raise self.wrong("addresses", f"has a kind that is none of {', '.join(_KINDS)}: {_shown(kind)}")
            try:
                check_host(host)
            except UsageError as error:
                raise self.wrong("addresses", f"must hold host names or IP addresses, not {host!r}", error) from error
            port = table.get("port")
            if port is not None and (isinstance(port, bool) or not isinstance(port, int) or port not in PORTS):
                raise self.wrong("addresses", f"has a port that is no number from 1 to 65535: {_shown(port)}")
            yield Address(host, kind or address_kind(host), port)

    def settings(self) -> Iterator[Given]:
        """Give what is said to transports, the provider's words before the node's own: the last one holds."""
        for where, table in reversed(self._layers):
            if where != ("defaults",):
                yield from self._file.given(where, table)

    def extra(self) -> Mapping[str, object]:
        merged: dict[str, object] = {}
        for _, table in reversed(self._layers):
            merged.update({key: value for key, value in table.items() if key not in _KNOWN})
        return MappingProxyType(merged)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "a table" if isinstance(value, dict) else repr(value)


def _line_of(text: str, where: Where, key: str) -> int:
    """Find the line where a key is set, or else where the innermost table around it begins.

    tomllib tells lines for syntax only. Headings, dotted keys and inline tables are all steps of
    one path: the line that goes furthest towards the key is the one to point at.
    """
    sought = (*where, key) if key else where
    here: Where = ()
    found, reached = 1, 0
    for number, line in enumerate(text.splitlines(), start=1):
        heading = line.lstrip().startswith("[")
        path = _path_of(line if heading else f"{line.partition('=')[0]}=0" if "=" in line else "")
        if heading and path:
            here = path
        elif path:
            path = here + path
        if len(path) > reached and path == sought[: len(path)]:
            found, reached = number, len(path)
    return found


def _path_of(line: str) -> Where:
    import tomllib

    try:
        table: object = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    names: list[str] = []
    while isinstance(table, dict) and table:
        name, table = next(iter(table.items()))
        names.append(name)
    return tuple(names)
