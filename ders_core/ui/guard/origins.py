"""Which hosts and origins are the studio's own.

A web page reaches a server on 127.0.0.1 under a name of its own by DNS rebinding, or from another
port by a plain request. Both show: in `Host`, or in `Origin`. An address in place of a name cannot
be rebound, so the address at which a connection came in is a host of ours, too.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Literal

from ders_core.errors import DersError

HOSTS_VARIABLE = "DERS_ALLOW_HOSTS"
"""Environment variable: further hosts, separated by blanks."""

Scheme = Literal["http", "https"]
PORTS: dict[str, int] = {"http": 80, "https": 443}
LOOPBACK = ("localhost", "127.0.0.1", "::1")

_NETLOC = re.compile(
    r"(?P<name>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port of an address. name: in small letters, an IPv6 address without
    brackets."""

    scheme: str
    name: str
    port: int

    @property
    def netloc(self) -> str:
        """As a browser writes it: a scheme's usual port is left out."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return name if PORTS.get(self.scheme) == self.port else f"{name}:{self.port}"


def parse_origin(text: str) -> Origin | None:
    """An `Origin` header; None for anything else than scheme, host and port."""
    scheme, separator, netloc = text.partition("://")
    if scheme not in PORTS or not separator:
        return None
    return parse_host(netloc, scheme)


def parse_host(text: str, scheme: str) -> Origin | None:
    """A `Host` header of a request by a scheme; None if it is none."""
    parts = _NETLOC.fullmatch(text)
    if parts is None:
        return None
    port = int(parts["port"]) if parts["port"] else PORTS[scheme]
    name = _plain_address(parts["name"].lower().strip("[]"))
    return Origin(scheme, name, port) if 0 < port < 65536 else None


def origin_of(text: str) -> Origin:
    """What `--allow-host` names: a host, a host and port, or either with http:// or https://.

    Without a scheme it is https, as proxies serve it. Raises DersError if it is none of these.
    """
    whole = text if "://" in text else f"https://{text}"
    origin = parse_origin(whole.rstrip("/"))
    if origin is None:
        raise DersError(
            f"{text!r} is not a host; give a name such as studio.example.org, with its port if it "
            "is not 443, and with http:// before it if browsers reach it without TLS"
        )
    return origin


@dataclass(frozen=True)
class Origins:
    """The studio's own addresses. scheme: of the server itself. names: by which it is reached at
    its own port. further: of proxies and tunnels."""

    scheme: str
    names: frozenset[str]
    further: frozenset[Origin] = frozenset()

    @classmethod
    def of(cls, host: str, scheme: str = "http", further: Iterable[Origin] = ()) -> Origins:
        """Of a server that listens on a host: a name, an address, or "0.0.0.0" or "::" for every
        address of the machine."""
        names = {*LOOPBACK, _plain_address(host.lower())}
        if not is_loopback(host):
            names.add(socket.gethostname().lower())
        return cls(scheme, frozenset(names - {"0.0.0.0", "::", ""}), frozenset(further))

    def knows_host(self, header: str, here: tuple[str, int]) -> Origin | None:
        """The own address that a `Host` header names; None if it is none of ours.

        here: address and port at which the connection came in.
        """
        own = self._own(here)
        asked = [parse_host(header, scheme) for scheme in (self.scheme, *PORTS)]
        return next((origin for origin in asked if origin in own), None)

    def knows_origin(self, header: str, here: tuple[str, int]) -> Origin | None:
        """As `knows_host`, of an `Origin` header."""
        origin = parse_origin(header)
        return origin if origin in self._own(here) else None

    def _own(self, here: tuple[str, int]) -> set[Origin]:
        address, port = here
        names = {*self.names, _plain_address(address)}
        return {*(Origin(self.scheme, name, port) for name in names), *self.further}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on a host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        try:
            return ip_address(socket.gethostbyname(host)).is_loopback
        except OSError:
            return False


def _plain_address(name: str) -> str:
    """An address in one spelling: IPv4 in IPv6 as IPv4, without a zone; a name as it is."""
    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        return name
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
