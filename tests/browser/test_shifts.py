"""Nothing jumps while a page arrives, or when something on it is chosen: layout shift, as browsers
measure it (https://web.dev/articles/cls: 0.1 or less is good)."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from support.browsing import arrived, drawn, show_demo
from support.studio_process import Studio

PAGES = {
    "": "Checkpoint",
    "redundancy": "Redundancy",
    "spectra": "Spectra",
    "recipe": "Recipe",
    "tune": "Tune",
    "runs": "Runs",
    "playground": "Playground",
    "export": "Export",
    "upcycle": "Upcycle",
}
"""The last part of a page's address -> its name."""

MOST = 0.1

WATCH = """
window.shifts = [];
const rect = r => [r.x, r.y, r.width, r.height].map(Math.round).join(" ");
const watcher = new PerformanceObserver(list => list.getEntries().forEach(entry => shifts.push({
    value: entry.value,
    sources: entry.sources.map(source => [
        (source.node?.textContent ?? "").slice(0, 40), rect(source.previousRect),
        rect(source.currentRect),
    ].join(" | ")),
})));
watcher.observe({type: "layout-shift", buffered: true});
"""
"""Each shift, what moved, and from where to where (x y width height). A shift soon after a click
counts here, too."""

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1800)]


def check(page: Page, what: str) -> None:
    """All has arrived, and what moved since the last check moved little."""
    arrived(page)
    page.wait_for_timeout(500)  # what comes after all else
    shifts = page.evaluate("shifts.splice(0)")
    assert sum(shift["value"] for shift in shifts) <= MOST, f"{what}: {shifts}"


def test_pages_do_not_move_while_they_arrive(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    context = visit(viewport={"width": 1280, "height": 900})
    context.add_init_script(WATCH)
    page = context.new_page()
    show_demo(page, studio)
    assert page.evaluate("PerformanceObserver.supportedEntryTypes.includes('layout-shift')")
    page.close()
    for part, name in PAGES.items():
        page = context.new_page()  # it knows the code, but has run none of it
        drawn(page, f"{studio.address}/{part}")
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        check(page, f"{name}, by its address")
        page.close()
    page = context.new_page()
    drawn(page, studio.address)
    check(page, "Checkpoint")
    for part, name in list(PAGES.items())[1:]:
        page.get_by_test_id("stTopNavLink").get_by_text(name, exact=True).click()
        expect(page).to_have_url(re.compile(rf"/{part}(\?.*)?$"))
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        check(page, f"{name}, by a link")


def test_pages_do_not_move_beside_a_closed_sidebar(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    context = visit(viewport={"width": 1280, "height": 900})
    context.add_init_script(WATCH)
    page = context.new_page()
    drawn(page, studio.address)
    sidebar = page.get_by_test_id("stSidebar")
    sidebar.hover()
    page.get_by_test_id("stSidebarCollapseButton").get_by_role("button").click()
    expect(sidebar).to_have_attribute("data-collapsed", "true")
    page.close()
    page = context.new_page()
    drawn(page, f"{studio.address}/export")
    expect(page.get_by_test_id("stSidebar")).to_have_attribute("data-collapsed", "true")
    check(page, "Export")


def test_what_is_chosen_moves_nothing(visit: Callable[..., BrowserContext], studio: Studio) -> None:
    """Another layer, on pages that draw all their plots again."""
    context = visit(viewport={"width": 1280, "height": 900})
    context.add_init_script(WATCH)
    page = context.new_page()
    show_demo(page, studio)
    for part in ("redundancy", "spectra"):
        drawn(page, f"{studio.address}/{part}")
        expect(page.locator(".js-plotly-plot").first).to_be_visible()
        check(page, part)
        for layer in ("2", "3"):
            box = page.get_by_role("combobox", name="Layer").first
            box.click()
            box.press_sequentially(layer)
            box.press("Enter")
            expect(page).to_have_url(re.compile(rf"layer={layer}(&|$)"))
            check(page, f"{part}, layer {layer}")
