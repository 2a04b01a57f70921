"""Streamlit's page is told where its server is.

Without that it guesses from the address: of `/runs` it asks for `/runs/_stcore/health` first, which
does not exist. The answer 404 stands in the browser's console, and the first paint waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ders_core.ui.guard.asgi import Application, Message, Receive, Scope, Send

SCRIPT = 'window.__streamlit={BACKEND_BASE_URL:new URL("./",location.href).href}'
"""Addresses of pages have one part: what stands before it is the server's."""

_HEAD, _END_OF_HEAD = b"<head>", b"</head>"


class RootAddress:
    """ASGI middleware: adds scripts to the HTML pages that are answered whole. Who asks for a page
    gets it as it is, not compressed.

    scripts: the first in their heads, beside `SCRIPT`. links: HTML that ends their heads.
    """

    def __init__(self, app: Application, *, scripts: Sequence[str] = (), links: str = "") -> None:
        self._app = app
        self._scripts = "".join(f"<script>{text}</script>" for text in (SCRIPT, *scripts)).encode()
        self._links = links.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        fields = scope["headers"]
        if any(name == b"accept" and b"text/html" in value for name, value in fields):
            scope["headers"] = [pair for pair in fields if pair[0] != b"accept-encoding"]
        start: Message = {}
        body = bytearray()

        async def send_changed(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_page(message):
                start = message
            elif start and message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    page = bytes(body).replace(_HEAD, _HEAD + self._scripts, 1)
                    page = page.replace(_END_OF_HEAD, self._links + _END_OF_HEAD, 1)
                    await send(_with_length(start, len(page)))
                    await send({"type": "http.response.body", "body": page})
            else:
                await send(message)

        await self._app(scope, receive, send_changed)


def _is_page(start: Message) -> bool:
    """Whether an answer is HTML as it is, not compressed."""
    headers = {name.lower(): value for name, value in start.get("headers", ())}
    is_html = headers.get(b"content-type", b"").startswith(b"text/html")
    return start["status"] == 200 and is_html and b"content-encoding" not in headers


def _with_length(start: Message, length: int) -> Message:
    others = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
    return {**start, "headers": [*others, (b"content-length", str(length).encode())]}
