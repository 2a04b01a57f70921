"""The studio as a user starts it, and a real browser before it.

Both end with the module whose tests used them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from support.job_waits import STILLNESS
from support.studio_process import Studio, running_studio

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Its absence fails in CI and skips, loudly, elsewhere."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    if executable is None:
        words = "no Chromium on this machine: the pages were NOT tested in a real browser"
        if os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    expect.set_options(timeout=1000 * STILLNESS)  # milliseconds; the machine may be busy
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """`ders app` in a workspace of its own, with its worker."""
    place = tmp_path_factory.mktemp("studio")
    with running_studio(place) as studio:
        yield studio


REFERENCES = "[...document.querySelectorAll('[src], link[href]')].map(e => e.src || e.href)"
"""What a document loads, its icon too, which a browser without a window does not fetch."""


@pytest.fixture
def visit(browser: Browser, studio: Studio) -> Iterator[Callable[..., BrowserContext]]:
    """Makes browser contexts with the given options, and closes them at the end. Nothing in them
    may ask another host than the studio's, for anything: it must be whole without internet."""
    contexts: list[BrowserContext] = []
    asked: list[str] = []

    def watch(page: Page) -> None:
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))

    def new_context(**options: Any) -> BrowserContext:
        contexts.append(browser.new_context(**options))
        contexts[-1].on("page", watch)
        return contexts[-1]

    yield new_context
    for context in contexts:
        for page in context.pages:
            asked += page.evaluate(REFERENCES)
        context.close()
    at_home = (
        f"{studio.address}/",
        f"{studio.address.replace('http', 'ws', 1)}/",
        "data:",
        "blob:",
    )
    assert asked
    assert {address for address in asked if not address.startswith(at_home)} == set()
