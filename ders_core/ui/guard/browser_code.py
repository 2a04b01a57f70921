"""The browser's code, sent without threads.

Starlette looks at each file and reads it in threads of its own. While the server imports what its
pages need, every change of thread waits for that, and a first visitor asks for ninety files.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from ders_core.ui.guard.asgi import Application, Receive, Scope, Send

FOLDERS = ("js", "css", "media")
"""Of Streamlit's static files: their names hold a hash of their bytes."""

FOR_GOOD = b"public, immutable, max-age=31536000"
"""As Streamlit has it of these files: a browser that has one asks for it no more."""

KINDS = {
    ".css": "text/css; charset=utf-8",
    ".gif": "image/gif",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
    ".wasm": "application/wasm",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
}
"""Types by suffixes: Python's own depend on the machine. Files with other suffixes are sent by
Streamlit."""

_PARTIAL = (b"range", b"if-none-match", b"if-modified-since")
"""Who asks with one of these headers is answered by Streamlit."""


class BrowserCode:
    """ASGI middleware: answers a GET of a file with a hash in its name; all else goes on.

    static: Streamlit's folder of these. base_path: below which the studio is served, with a slash
    in front; "" for none.
    """

    def __init__(self, app: Application, *, static: Path, base_path: str = "") -> None:
        self._app = app
        self._files = {
            f"{base_path}/static/{folder}/{file.name}": file
            for folder in FOLDERS
            for file in (static / folder).glob("*")
            if file.suffix in KINDS
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        file = self._asked(scope)
        try:
            body = b"" if file is None else file.read_bytes()
        except OSError:
            file = None
        if file is None:
            await self._app(scope, receive, send)
            return
        headers = [
            (b"content-type", KINDS[file.suffix].encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", FOR_GOOD),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _asked(self, scope: Scope) -> Path | None:
        """The file that a request wants whole; None for another request."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return None
        if any(name in _PARTIAL for name, _ in scope["headers"]):
            return None
        return self._files.get(unquote(scope["path"]))
