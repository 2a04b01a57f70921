"""Two browsers before one studio: each is told which jobs it started itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, expect
from support.browsing import drawn
from support.ended_jobs import add_ended
from support.studio_process import Studio

from ders_core.jobs.schema import transaction
from ders_core.ui.guard.browser_cookie import BROWSER_COOKIE

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3600)]

HERE, ELSEWHERE = "started here", "started in another browser"


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
    for context, told, not_told in ((one, HERE, ELSEWHERE), (other, ELSEWHERE, HERE)):
        page = context.new_page()
        drawn(page, f"{studio.address}/export")
        expect(page.get_by_text(told)).to_be_visible()
        expect(page.get_by_text(not_told)).to_have_count(0)
        drawn(page, f"{studio.door}")  # the door names no browser anew
        drawn(page, f"{studio.address}/export")
        expect(page.get_by_text(told)).to_be_visible()
