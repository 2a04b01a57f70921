"""Plots in a browser: one that changes is drawn once, and all have the colours of the theme that
the visitor sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from support.browsing import PATIENCE, arrived, drawn, show_demo
from support.studio_process import Studio

from ders_core.ui.plot_theme import DARK, LIGHT, Ground

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3600)]

COUNT = """
window.pictures = 0;
const draw = HTMLCanvasElement.prototype.toDataURL;
HTMLCanvasElement.prototype.toDataURL = function (...words) {
    window.pictures += 1;
    return draw.apply(this, words);
};
"""
"""Plotly makes a picture of a heat map's cells each time that it draws one."""

PLOTS = ".js-plotly-plot .main-svg"
MAPS = 3
"""Heat maps of the Redundancy page: of the model, of all pairs, and of one."""

OF_TEXTS = "[...document.querySelectorAll('.js-plotly-plot')].map(e => e._fullLayout.font.color)"
CODE = "performance.getEntriesByType('resource').some(e => e.name.includes('/PlotlyChart.'))"


def wait_until(page: Page, holds: Callable[[], bool], what: str) -> None:
    for _ in range(int(PATIENCE / 100)):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError(what)


def shown(page: Page, ground: Ground) -> bool:
    colours = page.evaluate(OF_TEXTS)
    return bool(colours) and set(colours) == {ground.text}


def test_a_plot_that_changes_is_drawn_once_and_all_follow_the_theme(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    """While a page arrives, one of its plots may be drawn twice; all are there before."""
    context = visit(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = context.new_page()
    show_demo(page, studio)
    page = context.new_page()
    page.add_init_script(COUNT)
    drawn(page, f"{studio.address}/redundancy")
    arrived(page)
    expect(page.locator(".st-key-pair_blocks_live").locator(PLOTS).first).to_be_attached()
    page.wait_for_timeout(1000)  # what is drawn again for letters that come late, or a width
    before = page.evaluate("pictures")
    assert before >= MAPS
    page.get_by_text("This layer", exact=True).click()  # changes the map of pairs alone
    wait_until(page, lambda: bool(page.evaluate("pictures") > before), "the map of pairs")
    arrived(page)
    page.wait_for_timeout(1000)  # a second draw would follow the first at once
    assert page.evaluate("pictures") == before + 1
    for theme, ground in (("dark", DARK), ("light", LIGHT)):
        page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
        wait_until(page, partial(shown, page, ground), theme)


def test_the_code_of_plots_is_there_before_the_first_plot(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    """Of the first page, which has none."""
    page = visit(viewport={"width": 1280, "height": 900}).new_page()
    drawn(page, studio.address)
    wait_until(page, lambda: bool(page.evaluate(CODE)), "the code of plots")
    expect(page.locator(PLOTS)).to_have_count(0)
