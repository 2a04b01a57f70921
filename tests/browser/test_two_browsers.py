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
    counts = []
    for context, own in ((one, 1), (other, 0)):
        page = context.new_page()
        for address in (studio.address, studio.door):  # which names no browser anew
            drawn(page, address)
            drawn(page, f"{studio.address}/export")
            expect(page.get_by_text(HERE)).to_have_count(own)  # other tests have exports too
        counts.append(page.get_by_text(ELSEWHERE).count())
    assert counts[1] == counts[0] + 1
