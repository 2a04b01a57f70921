"""What a person typed is told before the click that leaves its field, however short that is."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Locator, expect
from support.browsing import COMPUTED, drawn, settled, show_demo, type_into
from support.studio_process import Studio

from ders_core.ui.guard.paused_text import PAUSE

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3600)]


def check_short_clicks(field: Locator, link: Locator, there: str, here: str) -> None:
    """Playwright lets no time pass between press and release. there: the page of the link; here:
    that of the field."""
    page = field.page
    for text in ("once", "twice", "twice", "three times"):
        type_into(field, text)
        link.click()
        expect(page.get_by_role("heading", name=there, exact=True)).to_be_visible()
        settled(page)
        expect(field).to_have_count(0)
        page.get_by_test_id("stTopNavLink").get_by_text(here, exact=True).click()
        expect(field).to_have_value(text)


def test_a_short_click_right_after_typing_leads_on_and_the_text_stays(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    page = visit().new_page()
    drawn(page, f"{studio.address}/playground")
    prompt = page.get_by_role("textbox", name="Prompt")
    link = page.get_by_test_id("stTopNavLink").get_by_text("Upcycle", exact=True)
    check_short_clicks(prompt, link, "Upcycle", "Playground")


def test_a_link_within_the_page_waits_for_the_text_too(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    page = visit().new_page()
    page.goto(studio.address)
    page.get_by_role("button", name="Try the demo").click()
    expect(page.get_by_text("Colour of the map").first).to_be_visible(timeout=COMPUTED)
    drawn(page, f"{studio.address}/recipe")
    name = page.locator(".st-key-recipe_name input")
    link = page.get_by_test_id("stPageLink-NavLink").get_by_text("Run it", exact=True)
    check_short_clicks(name, link, "Runs", "Recipe")


def test_a_text_that_is_being_typed_survives_a_reload(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    """Its field was never left; it is told when the typist pauses, and typing goes on."""
    page = visit().new_page()
    show_demo(page, studio)
    drawn(page, f"{studio.address}/recipe")
    page.get_by_role("tab", name="YAML").click()
    field = page.locator(".st-key-recipe_yaml textarea")
    expect(field).to_be_visible()
    settled(page)
    field.press("ControlOrMeta+End")
    field.press_sequentially("# half a th")
    page.wait_for_timeout(PAUSE + 500)
    settled(page)
    field.press_sequentially("ought")
    expect(field).to_have_value(re.compile("# half a thought$"))
    page.wait_for_timeout(PAUSE + 500)
    settled(page)
    page.reload()
    page.get_by_role("tab", name="YAML").click()
    expect(field).to_have_value(re.compile("# half a thought$"))


CLICK_WHEN_TOLD = """
addEventListener("keydown", (event) => {
    if (event.isTrusted || event.key !== "Enter") return;
    const link = document.querySelector('[data-testid="stTopNavLink"][href$="upcycle"]');
    setTimeout(() => link.click());
});
"""


def test_a_click_just_after_a_pause_leads_on_and_the_text_stays(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    """The text is on its way to the server, which has not begun with it."""
    page = visit().new_page()
    page.add_init_script(CLICK_WHEN_TOLD)
    drawn(page, f"{studio.address}/playground")
    prompt = page.get_by_role("textbox", name="Prompt")
    for text in ("one", "two", "three"):
        type_into(prompt, text)
        expect(page.get_by_role("heading", name="Upcycle", exact=True)).to_be_visible()
        settled(page)
        page.get_by_test_id("stTopNavLink").get_by_text("Playground", exact=True).click()
        expect(prompt).to_have_value(text)
        settled(page)


def test_a_text_that_ends_with_a_composed_word_survives_a_reload(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    """An input method ends a word without another input."""
    page = visit().new_page()
    drawn(page, f"{studio.address}/playground")
    prompt = page.get_by_role("textbox", name="Prompt")
    type_into(prompt, "to ")
    page.wait_for_timeout(PAUSE + 500)
    settled(page)
    keyboard = page.context.new_cdp_session(page)
    place = {"selectionStart": 2, "selectionEnd": 2}
    keyboard.send("Input.imeSetComposition", {"text": "にほ", **place})
    keyboard.send("Input.insertText", {"text": "日本"})
    expect(prompt).to_have_value("to 日本")
    page.wait_for_timeout(PAUSE + 500)
    settled(page)
    page.reload()
    expect(prompt).to_have_value("to 日本")
