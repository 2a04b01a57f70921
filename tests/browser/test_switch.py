"""What a page shows after the app itself went to another one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, WebSocketRoute, expect
from support.browsing import COMPUTED
from support.studio_process import Studio

from ders_core.ui.frame import REFRESH_SECONDS, page_in_address

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3600)]


class SlowLine:
    """A connection on which what the server says can be held back."""

    def __init__(self) -> None:
        self.holds = False
        self._held: list[tuple[WebSocketRoute, str | bytes]] = []

    def join(self, socket: WebSocketRoute) -> None:
        def pass_on(message: str | bytes) -> None:
            if self.holds:
                self._held.append((socket, message))
            else:
                socket.send(message)

        socket.connect_to_server().on_message(pass_on)

    def let_go(self) -> None:
        self.holds = False
        for socket, message in self._held:
            socket.send(message)


def test_a_page_stays_that_a_late_refresh_would_empty(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    """The browser hears late that the app went to another page; meanwhile it asks for a refresh of
    the one that it shows."""
    page, line = visit().new_page(), SlowLine()
    page.route_web_socket("**/*", line.join)
    page.goto(studio.address)
    page.get_by_role("button", name="Try the demo").click()
    expect(page.locator(".js-plotly-plot")).not_to_have_count(0, timeout=COMPUTED)
    page.get_by_test_id("stTopNavLink").get_by_text("Checkpoint", exact=True).click()
    expect(page.get_by_test_id("stMain").get_by_text("8 experts × 4 layers")).to_be_visible()

    line.holds = True
    page.get_by_role("button", name="Try the demo").click()
    page.wait_for_timeout(1000 * (2 * REFRESH_SECONDS + 1))
    line.let_go()
    page.wait_for_timeout(1000 * REFRESH_SECONDS)  # it was drawn, and could be emptied, by then
    expect(page.get_by_text("Colour of the map")).to_be_visible()
    expect(page.locator(".js-plotly-plot")).not_to_have_count(0)


@pytest.mark.parametrize(
    ("address", "base_path", "name"),
    [
        ("http://127.0.0.1:8501", "", ""),
        ("http://127.0.0.1:8501/runs", "", "runs"),
        ("http://127.0.0.1:8501/runs/?layer=3", "", "runs"),
        ("https://host/tools/export", "/tools/export/", ""),
        ("https://host/tools/export/export", "tools/export", "export"),
        ("https://host/user/me/proxy/8501/", "", ""),
        ("https://host/user/me/proxy/8501/runs", "", "runs"),
    ],
)
def test_the_page_that_an_address_shows(address: str, base_path: str, name: str) -> None:
    assert page_in_address(address, {"", "runs", "export"}, base_path) == name
