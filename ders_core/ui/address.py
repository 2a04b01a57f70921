"""Where the studio listens, and the address that opens it."""

from __future__ import annotations

import errno
import re
import socket
from dataclasses import dataclass
from urllib.parse import quote

from ders_core.errors import DersError
from ders_core.ui.guard.origins import is_loopback

HOST = "127.0.0.1"
"""Where the studio listens if nobody says otherwise: it is reached from this machine only."""

ANY = {"0.0.0.0": HOST, "::": "::1"}
"""Hosts that stand for every address of the machine -> one that a browser can open."""

_PATH = re.compile(r"[\w.~-]+(/[\w.~-]+)*", re.ASCII)


@dataclass(frozen=True)
class Listening:
    """What a server listens on. host: a name or an address, without brackets."""

    host: str
    port: int

    def check(self) -> None:
        """Raises DersError if nothing can listen there: the port is taken, not allowed, or the host
        is not one of this machine."""
        try:
            self._bind()
        except socket.gaierror as error:
            raise DersError(
                f"address {self.host!r} is not known; give one of this machine, such as {HOST} "
                "or ::1"
            ) from error
        except OSError as error:
            raise DersError(self._refusal(error)) from error

    def _refusal(self, error: OSError) -> str:
        if error.errno == errno.EADDRINUSE:
            return f"port {self.port} is taken; give another with --port, such as {self._free()}"
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"port {self.port} is kept for the system; give one above 1023 with --port"
        return (
            f"address {self.host!r} is not one of this machine ({error.strerror}); give another "
            f"with --address, such as {HOST} or ::1"
        )

    def _bind(self, port: int | None = None) -> int:
        with self._socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((self.host, self.port if port is None else port))
            chosen: int = probe.getsockname()[1]
            return chosen

    def _free(self) -> int:
        """The next port that nobody listens on, or any."""
        for port in range(self.port + 1, min(self.port + 100, 65536)):
            try:
                return self._bind(port)
            except OSError:
                continue
        return self._bind(0)

    def answers(self) -> bool:
        """Whether a server listens there."""
        with self._socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((ANY.get(self.host, self.host), self.port)) == 0

    def _socket(self) -> socket.socket:
        return socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)

    def url(self, base_path: str = "", scheme: str = "http") -> str:
        """The address for a browser on this machine. base_path: with or without slashes around."""
        host = ANY.get(self.host, self.host)
        path = quote(base_path.strip("/"))
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}" + (
            f"/{path}" if path else ""
        )

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)


def base_path_of(text: str) -> str:
    """A base path without slashes around it. Raises DersError if it cannot be a path."""
    path = text.strip("/")
    if path and (not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/"))):
        raise DersError(
            f"base path {text!r} is not a path; give letters, digits, '-', '_', '.' and '~', "
            "with '/' between, such as tools/ders"
        )
    return path
