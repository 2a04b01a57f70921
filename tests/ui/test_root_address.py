"""The script that tells Streamlit's page where its server is: in pages alone, and whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ders_core.ui.guard.asgi import Message, Receive, Scope, Send
from ders_core.ui.guard.root_address import SCRIPT, RootAddress

PAGE = b"<!DOCTYPE html><html><head><title>x</title></head><body><head></body></html>"


def answered(
    pieces: list[bytes], headers: dict[str, str], method: str = "GET", status: int = 200
) -> tuple[dict[bytes, bytes], bytes]:
    """Headers and body of what a browser gets."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert method != "GET" or b"accept-encoding" not in dict(scope["headers"])
        length = str(sum(map(len, pieces)))
        told = {"Content-Length": length} | headers
        fields = [(name.encode(), value.encode()) for name, value in told.items()]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        for number, piece in enumerate(pieces, start=1):
            more = number < len(pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is asked")

    asked = [(b"accept", b"text/html,*/*"), (b"accept-encoding", b"gzip")]
    scope = {"type": "http", "method": method, "headers": asked}
    asyncio.run(RootAddress(app, scripts=["more()"])(scope, receive, send))
    start, *bodies = sent
    assert start["status"] == status
    found: dict[bytes, bytes] = {name.lower(): value for name, value in start["headers"]}
    return found, b"".join(body["body"] for body in bodies)


@pytest.mark.parametrize("cut", [0, 3, 20, len(PAGE)])
def test_a_page_has_the_script_first_in_its_head(cut: int) -> None:
    kind = {"content-type": "text/html; charset=utf-8", "etag": "e"}
    headers, body = answered([PAGE[:cut], PAGE[cut:]], kind)
    scripts = f"<script>{SCRIPT}</script><script>more()</script>"
    assert body == PAGE.replace(b"<head>", f"<head>{scripts}".encode(), 1)
    assert headers[b"content-length"] == str(len(body)).encode()
    assert headers[b"etag"] == b"e"


@pytest.mark.parametrize(
    "change",
    [
        {"headers": {"content-type": "application/json"}},
        {"headers": {"content-type": "text/html", "content-encoding": "gzip"}},
        {"method": "HEAD"},
        {"status": 404},
    ],
)
def test_nothing_else_is_changed(change: dict[str, Any]) -> None:
    told = {"headers": {"content-type": "text/html"}} | change
    headers, body = answered([PAGE], **told)
    assert body == PAGE
    assert headers[b"content-length"] == str(len(PAGE)).encode()
