"""A real browser before a studio. It may ask nobody but the studio, for anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright
from support.missing import missing
from support.studio_process import Studio

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

PATIENCE = 60_000.0
"""Milliseconds in which a page must show what a test looks for, however busy the machine is."""

COMPUTED = 10 * PATIENCE
"""The same for what a process beside the studio computes first; it imports torch for that."""

REFERENCES = "[...document.querySelectorAll('[src], link[href]')].map(e => e.src || e.href)"
"""What a document loads, its icon too, which a browser without a window does not fetch."""


STILL = """
const still = new CSSStyleSheet();
still.replaceSync(`*, *::before, *::after {
    animation-iteration-count: 1 !important;
    transition: none !important;
}`);
document.adoptedStyleSheets = [still];
"""
"""What turns and pulses without end keeps a core busy for as long as a test waits, and colours that
fade into others are waited for."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium. Its absence fails in CI and skips, loudly, elsewhere."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    if executable is None:
        missing("no Chromium on this machine: the pages were NOT tested in a real browser")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


def drawn(page: Page, address: str) -> None:
    """Go to an address, and wait until its page is drawn."""
    page.goto(address)
    settled(page)
    expect(page.get_by_test_id("stSidebar").get_by_text("Worker")).to_be_attached()


def show_demo(page: Page, studio: Studio) -> None:
    """Go to the Redundancy page of the demo, which is opened there unless it is open."""
    drawn(page, f"{studio.address}/redundancy")
    button, shown = page.get_by_role("button", name="Try the demo"), page.get_by_text("Colour of")
    expect(button.or_(shown).first).to_be_visible()
    if button.count():
        button.click()
    expect(shown.first).to_be_visible(timeout=COMPUTED)


def settled(page: Page) -> None:
    """Wait until the page is drawn to its end, and nothing of an earlier draw is left."""
    app = page.get_by_test_id("stApp")
    expect(app).to_have_attribute("data-test-script-state", "notRunning")
    expect(page.locator("[data-stale=true]")).to_have_count(0)


def arrived(page: Page) -> None:
    """Wait until the page is drawn, and all that was hidden while its code came is there."""
    settled(page)
    bars = ".stSkeleton:visible, [data-testid=stSkeleton]:visible"  # in place of code: no class
    expect(page.locator(f"[data-waits], {bars}")).to_have_count(0)


def type_into(field: Locator, text: str) -> None:
    """Type into a field as a person does, once its page is drawn.

    Streamlit puts a field's value into it a moment after it can be seen: in a busy browser, over
    what a program has typed by then.
    """
    expect(field).to_be_visible()
    settled(field.page)
    field.fill(text)


@contextmanager
def visits(browser: Browser, studio: Studio) -> Iterator[Callable[..., BrowserContext]]:
    """Makes browser contexts with the given options, which the studio lets in, and closes them at
    the end. Nothing in them may ask another host than the studio's: it must be whole without
    internet. Nor may a page do what the studio's Content-Security-Policy forbids."""
    contexts: list[BrowserContext] = []
    asked: list[str] = []
    forbidden: list[str] = []

    def watch(page: Page) -> None:
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        page.on("console", lambda message: complain(message.text))

    def complain(text: str) -> None:
        if "Content Security Policy" in text or "Content-Security-Policy" in text:
            forbidden.append(text)

    def new_context(**options: Any) -> BrowserContext:
        contexts.append(browser.new_context(**options))
        contexts[-1].on("page", watch)
        contexts[-1].set_default_timeout(PATIENCE)
        contexts[-1].add_init_script(STILL)
        assert contexts[-1].request.get(studio.door).ok  # the context has the cookie now
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
    assert forbidden == []
