"""A cookie that names a browser at random. It opens nothing, and tells two visitors apart."""

from __future__ import annotations

import re
import secrets

BROWSER_COOKIE = "ders-studio-browser"
"""The same for all ports: jobs belong to a workspace, which is served at other ports later."""

SECONDS = 365 * 24 * 3600
"""How long a browser keeps it after it was last set."""

_NAME = re.compile(r"[0-9a-f]{16}")


def is_browser_name(text: str) -> bool:
    """Whether it is a name as this module makes them: browsers can send anything."""
    return _NAME.fullmatch(text) is not None


def naming_words(known: str) -> list[str]:
    """The words of a `Set-Cookie` header that names a browser. known: the name that it sent, which
    it keeps; anything else gets a new one."""
    name = known if is_browser_name(known) else secrets.token_hex(8)
    return [f"{BROWSER_COOKIE}={name}", "Path=/", f"Max-Age={SECONDS}", "HttpOnly"]
