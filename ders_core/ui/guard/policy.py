"""Headers of every answer: what a page may load and who may frame it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)

Headers = tuple[tuple[bytes, bytes], ...]

SOCKETS = "ws://studio.invalid"
"""In the policy, stands for our own WebSockets: not every browser counts them to 'self'. The name
is reserved and leads nowhere."""

COMMON = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def hash_of(text: str) -> str:
    """The source expression that allows one inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def inline_scripts(page: str) -> list[str]:
    """The scripts without a file in an HTML page."""
    return _INLINE.findall(page)


def policy(**sources: str) -> str:
    """A Content-Security-Policy: nothing from elsewhere, no frames around the page."""
    directives = {
        "default_src": "'none'",
        **sources,
        "base_uri": "'none'",
        "frame_ancestors": "'none'",
    }
    return "; ".join(f"{name.replace('_', '-')} {value}" for name, value in directives.items())


def studio_policy(scripts: Iterable[str]) -> str:
    """For the studio: our own origin alone. scripts: the inline ones of Streamlit's page.

    Streamlit and plotly write styles into elements; tables and plots draw pictures of their own
    (data:, blob:) and compute in workers that they make (blob:).
    """
    return policy(
        default_src="'self'",
        script_src=" ".join(["'self'", *map(hash_of, scripts)]),
        style_src="'self' 'unsafe-inline'",
        img_src="'self' data: blob:",
        font_src="'self' data:",
        media_src="'self' data: blob:",
        connect_src=f"'self' {SOCKETS}",
        worker_src="'self' blob:",
        frame_src="'none'",
        object_src="'none'",
        form_action="'self'",
    )


def studio_headers(index: Path, added: Iterable[str]) -> Headers:
    """The headers of the studio's answers. index: the page of the installed Streamlit; added: the
    scripts that are added to it."""
    scripts = [*added, *inline_scripts(index.read_text(encoding="utf-8"))]
    return as_headers({**COMMON, "Content-Security-Policy": studio_policy(scripts)})


def for_host(headers: Headers, netloc: str, *, secure: bool) -> Headers:
    """The headers of an answer under one of our own names."""
    own = f"{'wss' if secure else 'ws'}://{netloc}".encode()
    return tuple((name, value.replace(SOCKETS.encode(), own)) for name, value in headers)


def as_headers(fields: dict[str, str]) -> Headers:
    """As ASGI wants them."""
    return tuple((name.lower().encode(), value.encode()) for name, value in fields.items())
