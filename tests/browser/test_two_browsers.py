"""Two browsers before one studio: each is told which jobs it did not start itself, and a link shows
the same in both."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from playwright.sync_api import BrowserContext, expect
from support.browsing import drawn
from support.ended_jobs import add_ended
from support.studio_process import Studio

from ders_core.jobs.schema import transaction
from ders_core.jobs.workspace import Workspace
from ders_core.recipe import Recipe, presets
from ders_core.ui.guard.browser_cookie import BROWSER_COOKIE
from ders_core.ui.opened import Open

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3600)]

ELSEWHERE = "started elsewhere"


def name_of(context: BrowserContext) -> str:
    """What the studio's door called the browser."""
    (name,) = (cookie["value"] for cookie in context.cookies() if cookie["name"] == BROWSER_COOKIE)
    return name


def test_each_browser_knows_its_own_jobs(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    one, other = visit(color_scheme="light"), visit(color_scheme="dark")
    assert name_of(one) != name_of(other)
    add_ended(studio.store, "export")
    number = studio.store.list(kind="export")[0].id
    with transaction(studio.store.path) as db:
        db.execute("UPDATE jobs SET filed_by = ? WHERE id = ?", (name_of(one), number))
    counts = []
    for context in (one, other):
        page, name = context.new_page(), name_of(context)
        for address in (studio.address, studio.door):  # which names no browser anew
            drawn(page, address)
            drawn(page, f"{studio.address}/export")
            assert name_of(context) == name
        counts.append(page.get_by_text(ELSEWHERE).count())  # other tests have exports too
    assert counts[1] == counts[0] + 1


def test_a_link_of_another_site_leaves_a_browser_its_name(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    context = visit(color_scheme="light")
    name, page = name_of(context), context.new_page()
    link = f"data:text/html,<a href='{studio.door}'>Studio</a>"  # of no site
    for known in (True, False):
        if not known:
            context.clear_cookies(name=BROWSER_COOKIE)
        page.goto(link)
        page.get_by_role("link").click()
        expect(page.get_by_test_id("stSidebar").get_by_text("Worker")).to_be_attached()
        assert (name_of(context) == name) == known


def make_current(studio: Studio, recipe: Recipe) -> None:
    """The recipe that new sessions begin with."""
    workspace = Workspace(studio.workspace)
    replace(Open.load(workspace), recipe=recipe.to_yaml()).save(workspace)


def test_a_link_and_a_reload_show_a_recipe_that_was_not_saved(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    changed = presets()["quantized-2bit"].model_copy(update={"name": "of a link", "seed": 5})
    make_current(studio, changed)
    page = visit(color_scheme="light").new_page()
    drawn(page, f"{studio.address}/runs")
    expect(page).to_have_url(re.compile(r"[?&]recipe-text=[\w-]+"))
    link = page.url
    make_current(studio, presets()["keep"])  # it goes on
    other = visit(color_scheme="dark").new_page()
    drawn(other, f"{studio.address}/runs")
    sidebar = other.get_by_test_id("stSidebar")
    expect(sidebar.get_by_text("keep", exact=True)).to_be_visible()
    for follow in (lambda: drawn(other, link), other.reload):
        follow()
        expect(sidebar.get_by_text("of a link", exact=True)).to_be_visible()
        expect(other).to_have_url(link)
