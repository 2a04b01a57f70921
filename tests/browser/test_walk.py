"""The main road in a real browser: demo, redundancy, recipe, run, export; and what is shown.

The demo is the one that users get; `tests/demo/test_unpack.py` measures what it promises.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from support.accessibility import OF_COLOURS, grave_findings
from support.browsing import COMPUTED, drawn, settled, type_into
from support.ended_jobs import add_ended
from support.job_waits import wait_for_job
from support.studio_process import Studio

from ders_core.analysis import Analysis, judge
from ders_core.jobs.workspace import Workspace
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.quality import kl_text
from ders_core.recipe import presets
from ders_core.units import bytes_text

NAMES = ("redundancy", "spectra", "recipe", "tune", "runs", "playground", "export", "upcycle")
"""Pages, as addresses have them; the first one has no name there."""

ADDED = {"runs": "walked", "export": "huggingface.co/me/small-moe"}
"""What tells that jobs are shown which were added to those of the walk."""

BACKSTOP = 3600
"""Seconds. Nothing should come near it: each wait ends by itself when nothing moves."""

MAIN = "document.querySelector('[data-testid=stMain]')"
WIDER = f"{MAIN}.scrollWidth - {MAIN}.clientWidth"
"""By how much a page is wider than its window, in px."""

BACKGROUND = "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"

LAYOUT = 30
"""Seconds in which a page must fit a window of another size."""

pytestmark = [pytest.mark.browser, pytest.mark.timeout(BACKSTOP)]


def go(page: Page, name: str) -> None:
    link = page.get_by_test_id("stTopNavLink").get_by_text(name, exact=True)
    link.click()
    expect(page).to_have_url(
        re.compile(rf"/{name.lower() if name != 'Checkpoint' else ''}(\?.*)?$")
    )


def calm(page: Page) -> None:
    """No page shows an exception, whatever else it shows."""
    assert page.get_by_test_id("stException").count() == 0


@pytest.mark.slow
def test_from_nothing_to_an_export(visit: Callable[..., BrowserContext], studio: Studio) -> None:
    context = visit(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(studio.address)

    # Nothing is open; a path outside the roots is refused with a sentence.
    expect(page.get_by_text("Which experts repeat themselves?")).to_be_visible()
    page.get_by_role("combobox", name="Model directory").fill("/etc")
    page.get_by_text("Add: /etc").or_(page.get_by_role("option", name="/etc")).first.click()
    page.get_by_test_id("stBaseButton-primary").click()
    expect(page.get_by_text("lies outside the folders")).to_be_visible()

    # One click opens the demo that comes with the studio, and shows how alike its experts are.
    page.get_by_role("button", name="Try the demo").click()
    expect(page.get_by_text("Colour of the map").first).to_be_visible(timeout=COMPUTED)
    assert studio.store.list() == []  # nothing was trained, and no analysis was asked for
    expect(page.get_by_text("The experts share one start").first).to_be_visible()
    expect(page.locator(".js-plotly-plot")).not_to_have_count(0)
    calm(page)
    expect(page.get_by_text("Colour of the map")).to_have_count(1)  # nothing of an earlier draw
    page.locator(".st-key-model_map_live .nsewdrag:visible").first.click()  # the middle of the map
    expect(page).to_have_url(re.compile("projection=up"))
    demo = studio.workspace / "demo"
    figures = json.loads((demo / "demo.json").read_text())
    assert figures["mean_cosine"] >= 0.99
    assert figures["perplexities"]["moe"] < figures["perplexities"]["dense"]
    assert figures["perplexities"]["base_only"] >= 1.10 * figures["perplexities"]["moe"]
    checkpoint = open_checkpoint(demo / "moe")
    assert (checkpoint.num_experts, checkpoint.top_k, len(checkpoint.moe_layers)) == (8, 2, 4)
    analysis = Analysis.load(Workspace(studio.workspace).analysis_dir(checkpoint.identity))
    assert analysis.is_of(checkpoint.store)
    assert analysis.verdict.verdict == "upcycled"
    assert analysis.verdict.mean_cosine == pytest.approx(figures["mean_cosine"], abs=1e-6)

    # A click on the map of pairs chooses its row and column, in the order of the tree beside it.
    cells = page.locator(".st-key-similarity .nsewdrag[data-subplot=xy]")
    settled(page)
    expect(cells).to_have_count(1)  # the one of the other projection is gone
    cells.click(position={"x": 9, "y": 120})  # the first column, and the third of eight rows
    layer = int(re.findall(r"[?&]layer=(\d+)", page.url)[0])
    order = analysis.expert_tree(layer, "up").order
    expect(page).to_have_url(re.compile(rf"[?&]expert={order[2]}(&|$)"))
    expect(page).to_have_url(re.compile(rf"[?&]with={order[0]}(&|$)"))

    # The browser goes away and comes back: the demo is open, and the first page answers.
    page.close()
    page = context.new_page()
    page.goto(studio.address)
    main = page.get_by_test_id("stMain")
    expect(main.get_by_text("8 experts × 4 layers, top-2.")).to_be_visible()
    expect(main.get_by_text("The experts share one start")).to_be_visible()
    expect(main.get_by_text(bytes_text(checkpoint.bytes_total), exact=True)).to_be_visible()
    calm(page)
    go(page, "Spectra")
    expect(page.get_by_text("of this layer's delta energy")).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(4)
    calm(page)

    # A preset changes the prediction at once.
    go(page, "Recipe")
    page.get_by_text("Start from a preset").click()
    page.locator(".st-key-preset_quantized-2bit button").click()
    plan = resolve(presets()["quantized-2bit"], checkpoint)
    sidebar = page.get_by_test_id("stSidebar")
    expect(sidebar.get_by_text("quantized-2bit")).to_be_visible()
    expect(sidebar.get_by_text(bytes_text(plan.bytes_after))).to_be_visible()
    page.get_by_text("Edit in the table, or tick rows").scroll_into_view_if_needed()
    totals = page.get_by_test_id("stBottom")  # in sight, wherever the page is scrolled to
    expect(totals.get_by_text(bytes_text(plan.bytes_after))).to_be_in_viewport()
    page.get_by_role("heading", name="Recipe").scroll_into_view_if_needed()
    expect(totals.get_by_text(bytes_text(plan.bytes_after))).to_be_in_viewport()
    calm(page)

    # The run compresses, verifies and evaluates in the worker, as it was set before a look at
    # another page.
    go(page, "Runs")
    tokens = page.get_by_role("spinbutton", name="Tokens")
    type_into(tokens, "2048")
    go(page, "Redundancy")
    expect(page.get_by_text("Colour of the map")).to_be_visible()
    go(page, "Runs")
    expect(tokens).to_have_value("2048")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_test_id("stMain").get_by_test_id("stProgress").first).to_be_visible()
    page.close()  # the browser goes away; the worker goes on
    page = context.new_page()
    page.goto(f"{studio.address}/runs")
    result = wait_for_job(studio, "run").result or {}
    expect(page.get_by_text("Finished runs")).to_be_visible()
    assert result["bytes_after"] == plan.bytes_after
    assert result["verification"]["ok"]
    assert 1024 < result["quality"]["tokens"] <= 2048
    assert 0 < result["quality"]["kl"] < 1
    assert result["quality"]["top1_agreement"] > 0.5
    calm(page)

    # What was opened and what ran is there in a new session too.
    page.close()
    page = context.new_page()
    page.goto(f"{studio.address}/export")
    expect(page.get_by_text("Packed DeRS checkpoint").first).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Report").click()
    report = download.value.path().read_text(encoding="utf-8")
    assert f">{kl_text(result['quality'])}</td>" in report
    assert analysis.verdict.sentence in report
    page.get_by_role("button", name="Export", exact=True).first.click()
    wait_for_job(studio, "export")
    expect(page.get_by_text("every tensor reads back as written").first).to_be_visible()
    out = studio.workspace / "exports" / "quantized-2bit-ders"
    assert PackedCheckpoint(out).bytes_total == plan.bytes_after
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"{result['quality']['perplexity']:.4g}" in card
    calm(page)

    # What was exported is opened by its path, and its similarity appears after one job.
    go(page, "Checkpoint")
    page.get_by_role("combobox", name="Model directory").fill(str(out))
    page.get_by_text(f"Add: {out}").or_(page.get_by_role("option", name=str(out))).first.click()
    page.locator(".st-key-open button").click()
    expect(page.get_by_text("Packed: ")).to_be_visible(timeout=COMPUTED)
    go(page, "Redundancy")
    page.get_by_role("button", name="Analyse").click()
    wait_for_job(studio, "analyze")
    expect(page.get_by_text("Colour of the map").first).to_be_visible()
    expect(page.get_by_text("Colour of the map")).to_have_count(1)  # nothing of an earlier draw
    packed = open_checkpoint(out)
    analysis = Analysis.load(Workspace(studio.workspace).analysis_dir(packed.identity))
    assert judge(analysis.verdict.mean_cosine).verdict == "upcycled"
    expect(page.locator(".js-plotly-plot")).not_to_have_count(0)
    calm(page)


def test_pages_fit_their_window_and_can_be_read(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    """A link to any page asks for nothing that does not exist. None scrolls sideways, in a narrow
    and a wide window, in either theme; and axe-core finds nothing serious, such as text without
    contrast, fields without names, or what no key reaches."""
    if runs := studio.store.list(kind="run"):  # of the walk: it is asked, and was pushed
        models = [{"name": "walked", "packed": (runs[0].result or {})["packed"]}]
        add_ended(studio.store, "compare", original=runs[0].spec["checkpoint"], models=models)
        add_ended(studio.store, "push")
    page = visit(color_scheme="light").new_page()
    missing: list[str] = []
    told: list[str] = []
    page.on("response", lambda got: missing.append(got.url) if got.status >= 400 else None)
    page.on("console", lambda said: told.append(said.text) if said.type == "error" else None)
    colours: dict[str, str] = {}
    for name in ("", *NAMES):
        parameters = f"?compared={runs[0].id}" if runs and name == "runs" else ""
        drawn(page, f"{studio.address}/{name}{parameters}")
        if runs and name in ADDED:
            expect(page.get_by_text(ADDED[name]).first).to_be_visible()
        for theme, other, widths, rules in (
            ("light", "dark", (1920, 1280), ()),
            ("dark", "light", (1280, 1920), OF_COLOURS),
        ):
            if other in colours:  # the page follows the system
                app = page.get_by_test_id("stApp")
                page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
                expect(app).not_to_have_css("background-color", colours[other])
            colours[theme] = page.evaluate(BACKGROUND)
            for width in widths:
                fits(page, width, f"{name or 'first'}, {theme}")
            assert grave_findings(page, *rules) == [], f"{name or 'first'}, {theme}"
            calm(page)
        page.emulate_media(color_scheme="light")
    assert colours["light"] != colours["dark"]
    assert missing == []
    assert told == []


def fits(page: Page, width: int, name: str) -> None:
    """In a window of that width, in px, a page needs no more; tables and figures follow it."""
    page.set_viewport_size({"width": width, "height": 900})
    wider = page.evaluate(WIDER)
    until = time.monotonic() + LAYOUT
    while wider > 0 and time.monotonic() < until:
        page.wait_for_timeout(100)
        wider = page.evaluate(WIDER)
    assert wider <= 0, f"{name} is {wider} px wider than its window of {width} px"
