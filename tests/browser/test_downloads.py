"""What can be seen can be downloaded: the numbers and picture of every plot, every table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from support.browsing import arrived, drawn, show_demo
from support.ended_jobs import add_ended
from support.studio_process import Studio

PLOTS = ".js-plotly-plot:visible"
KEYS = """plots => plots.map(plot => {
    const key = (part) => [...part.classList].find(name => name.startsWith("st-key-")).slice(7);
    const chart = key(plot.closest("[class*=st-key-]"));
    const live = plot.closest(`[class*=st-key-][class*=_live]`);
    return [live ? key(live).replace(/_live$/, "") : chart, chart];
})"""
"""Of each plot: its key, and that of the one of its charts that is shown (`live_plot`)."""

PLOTTING = ("redundancy", "spectra", "runs")
"""Parts that have plots of the demo, and of runs."""

PARTS = ("", "redundancy", "spectra", "recipe", "tune", "runs", "playground", "export", "upcycle")
"""The last parts of the pages' addresses."""

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]


def has_downloads(page: Page, what: str) -> None:
    """Every visible plot has a button for its numbers and one for its picture; every table has one
    in its toolbar, or below it."""
    for key, chart in page.locator(PLOTS).evaluate_all(KEYS):
        for button in (f".st-key-{key}_csv", f'[data-plot-picture="{chart}"]'):
            expect(page.locator(button), f"{what}: {button}").to_have_count(1)
    tables = page.locator("[data-testid=stElementContainer]:has(> * [data-testid=stDataFrame])")
    tables = tables.filter(visible=True)
    for number in range(tables.count()):
        tables.nth(number).scroll_into_view_if_needed()
        tables.nth(number).hover()
        toolbar = tables.nth(number).get_by_role("button", name="Download as CSV")
        expect(toolbar, f"{what}: table {number}").to_be_attached()


def test_every_plot_and_table_can_be_downloaded(
    visit: Callable[..., BrowserContext], studio: Studio, tmp_path: Path
) -> None:
    page = visit(viewport={"width": 1280, "height": 900}).new_page()
    show_demo(page, studio)
    for _ in range(2):
        add_ended(studio.store, "run")
    for part in PARTS:
        drawn(page, f"{studio.address}/{part}")
        arrived(page)
        if part in PLOTTING:
            expect(page.locator(PLOTS), part).not_to_have_count(0)
        has_downloads(page, part)
    drawn(page, f"{studio.address}/redundancy")
    for key, title in (("model_map", "Mean 1 − cos of experts"), ("norm_ratio", "over depth")):
        camera = page.locator(f'[class*="st-key-{key}"] .modebar-btn').first
        expect(camera).to_be_attached()  # the plot is drawn
        button = page.locator(f'[data-plot-picture^="{key}"]')
        with page.expect_download() as download:
            button.press("Enter")
        assert download.value.suggested_filename == f"{key}.svg"
        file = tmp_path / f"{key}.svg"
        download.value.save_as(file)
        words = "".join(ElementTree.parse(file).getroot().itertext())
        assert title in words
        assert "layer" in words
    with page.expect_download() as download:  # the camera's are still PNG
        page.locator(".st-key-norm_ratio .modebar-btn").first.click(force=True)
    assert download.value.suggested_filename == "norm_ratio.png"
