"""What browsers get of Streamlit's code: the same bytes as from it, and its names early."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from ders_core.ui.guard.asgi import Message, Receive, Scope, Send
from ders_core.ui.guard.browser_code import FOR_GOOD, BrowserCode
from ders_core.ui.guard.first_code import links
from ders_core.ui.guard.start import STATIC

ONWARD = b"of Streamlit"


def answered(
    path: str,
    *headers: tuple[bytes, bytes],
    method: str = "GET",
    base: str = "",
    static: Path = STATIC,
) -> tuple[dict[bytes, bytes], bytes]:
    """Headers and body of an answer for Streamlit's files, by default the installed ones."""

    async def streamlit(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": ONWARD})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is asked")

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(BrowserCode(streamlit, static=static, base_path=base)(scope, receive, send))
    start, body = sent
    return dict(start["headers"]), body["body"]


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("js/index.*.js", b"text/javascript; charset=utf-8"),
        ("css/*.css", b"text/css; charset=utf-8"),
        ("media/*.woff2", b"font/woff2"),
        ("media/*.png", b"image/png"),
        ("media/*.svg", b"image/svg+xml"),
    ],
)
@pytest.mark.parametrize("base", ["", "/tools/studio"])
def test_a_file_with_a_hash_in_its_name_is_sent_whole(pattern: str, kind: bytes, base: str) -> None:
    file = next(STATIC.glob(pattern))
    place = f"/static/{file.relative_to(STATIC)}"
    headers, body = answered(f"{base}{place}", base=base)
    assert body == file.read_bytes()
    assert headers[b"content-length"] == str(len(body)).encode()
    assert headers[b"content-type"] == kind
    assert headers[b"cache-control"] == FOR_GOOD
    if base:
        assert answered(place, base=base)[1] == ONWARD


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/static/", "/static/js", "/static/js/", "/static/js/none.js", "/index.html"),
        *("/static/js/../../index.html", "/static/js/%2e%2e/%2e%2e/index.html", "/static//js/a.js"),
    ],
)
def test_all_else_goes_on(path: str) -> None:
    assert answered(path)[1] == ONWARD


def test_a_file_of_an_unknown_type_goes_on(tmp_path: Path) -> None:
    for folder, name in (("js", "a.1.js"), ("media", "b.1.odd"), ("media", "c")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text("code")
    assert answered("/static/js/a.1.js", static=tmp_path)[1] == b"code"
    for name in ("b.1.odd", "c"):
        assert answered(f"/static/media/{name}", static=tmp_path)[1] == ONWARD


def test_who_asks_for_a_part_is_answered_by_streamlit() -> None:
    path = f"/static/js/{next(STATIC.glob('js/index.*.js')).name}"
    assert answered(path, (b"range", b"bytes=0-9"))[1] == ONWARD
    assert answered(path, (b"if-none-match", b'"tag"'))[1] == ONWARD
    assert answered(path, method="HEAD")[1] == ONWARD


def test_the_page_names_what_its_first_elements_import(tmp_path: Path) -> None:
    """By hand: what is on the page already, missing, or imported twice or later is not named."""
    scripts = tmp_path / "static" / "js"
    scripts.mkdir(parents=True)
    page = '<script src="./static/js/index.1.js"></script>'
    (tmp_path / "index.html").write_text(page)
    for name, text in {
        "Html.1.js": 'import{a}from"./index.1.js";import"./deep.1.js";import("./later.1.js")',
        "Button.1.js": "import {b} from './deep.1.js';",
        "deep.1.js": 'export*from"./deeper.1.js";import"./gone.1.js"',
        "deeper.1.js": 'import"./Html.1.js"',
        "later.1.js": "",
        "index.1.js": "",
    }.items():
        (scripts / name).write_text(text)
    named = re.findall(r'href="\./static/js/([^"]+)"', links(tmp_path / "static"))
    assert sorted(named) == ["Button.1.js", "Html.1.js", "deep.1.js", "deeper.1.js"]


def test_the_installed_streamlit_has_these_elements() -> None:
    named = links(STATIC)
    for element in ("Html", "Selectbox", "Button"):
        assert f"./static/js/{element}." in named
