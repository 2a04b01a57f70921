"""What a person typed is told before the click that leaves its field, however short that is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, expect
from support.browsing import drawn, type_into
from support.studio_process import Studio

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3600)]


def test_a_short_click_right_after_typing_leads_on_and_the_text_stays(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    """Playwright lets no time pass between press and release."""
    page = visit().new_page()
    drawn(page, f"{studio.address}/playground")
    prompt = page.get_by_role("textbox", name="Prompt")
    links = page.get_by_test_id("stTopNavLink")
    for text in ("once", "twice", "three times"):
        type_into(prompt, text)
        links.get_by_text("Upcycle", exact=True).click()
        expect(page.get_by_role("heading", name="Upcycle", exact=True)).to_be_visible()
        expect(page.get_by_test_id("stApp")).to_have_attribute(
            "data-test-script-state", "notRunning"
        )
        expect(prompt).to_have_count(0)
        links.get_by_text("Playground", exact=True).click()
        expect(prompt).to_have_value(text)
