"""Who reaches the studio, and what foreign names can do on its pages: a real server and browser."""

from __future__ import annotations

import http.client
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect
from support.browsing import PATIENCE, chromium, settled, visits
from support.hostile_workspace import LONG_NAME, NAME, RECIPE, hostile_workspace
from support.job_waits import wait_for_job
from support.studio_process import Studio, running_studio

from ders_core.figures.curves import NAME as NAMED
from ders_core.ui.frame import NAME as SIDEBAR_NAME
from ders_core.ui.guard.browser_cookie import BROWSER_COOKIE
from ders_core.units import shortened

pytestmark = pytest.mark.timeout(3600)

PAGES = (
    *("Checkpoint", "Redundancy", "Spectra", "Recipe", "Tune", "Runs", "Playground", "Export"),
    "Upcycle",
)
ROUTES = (
    "/",
    "/runs",
    "/favicon.png",
    "/static/js/none.js",
    "/_stcore/health",
    "/_stcore/host-config",
    "/_stcore/metrics",
    "/_stcore/agent/openapi.json",
    "/_stcore/upload_file/session/file",
    "/media/none.csv",
    "/component/none/index.html",
)
SOCKET = "/_stcore/stream"


@pytest.fixture(scope="module")
def studio(
    tmp_path_factory: pytest.TempPathFactory, mixtral_dir: Path, dense_parent_dir: Path
) -> Iterator[Studio]:
    """A studio whose workspace is full of hostile names, for a proxy, too."""
    place = tmp_path_factory.mktemp("attacked")
    hostile_workspace(place / "workspace", mixtral_dir, dense_parent_dir)
    with running_studio(place, "--allow-host", "studio.example.org") as studio:
        yield studio


Answer = tuple[int, http.client.HTTPMessage, str]


def ask(studio: Studio, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    """Status, headers and text of one answer. headers: with "_" for "-"; `Host` is the studio's
    unless one is given."""
    parts = urlsplit(studio.address)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    text = ""
    if answer.status != 101:  # a WebSocket that is open
        text = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, answer.headers, text


def set_cookies(headers: http.client.HTTPMessage) -> list[list[str]]:
    """The words of each cookie that an answer sets."""
    return [value.split("; ") for value in headers.get_all("set-cookie", [])]


def shake_hands(studio: Studio, **headers: str) -> int:
    """Status of a WebSocket's handshake; 101 if it is opened."""
    usual = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec_WebSocket_Protocol": "streamlit",
    }
    return ask(studio, SOCKET, **usual, **headers)[0]


@pytest.fixture(scope="module")
def cookie(studio: Studio) -> str:
    """What a browser sends after the token was shown."""
    status, headers, _ = ask(studio, f"/?token={studio.token}")
    assert status == 303
    return set_cookies(headers)[0][0]


@pytest.fixture
def port(studio: Studio) -> int:
    port = urlsplit(studio.address).port
    assert port is not None
    return port


def test_without_the_token_nothing_is_shown(studio: Studio, cookie: str) -> None:
    for path in ROUTES:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
            status, _, text = ask(studio, path, method)
            assert status == 403, (method, path)
            assert "streamlit" not in text.lower()
    assert shake_hands(studio, Origin=studio.address) == 403
    name = cookie.partition("=")[0]
    for wrong in ("", "x", cookie.partition("=")[2][:-1], studio.token):
        assert ask(studio, Cookie=f"{name}={wrong}")[0] == 403
        assert shake_hands(studio, Origin=studio.address, Cookie=f"{name}={wrong}") == 403
    for wrong in ("", "x", studio.token[:-1], f"{studio.token}x", cookie.partition("=")[2]):
        status, headers, text = ask(studio, f"/?token={wrong}")
        assert status == 403
        assert "set-cookie" not in headers
        assert wrong not in text or not wrong or wrong == "x"
    assert ask(studio, Cookie=cookie)[0] == 200
    assert shake_hands(studio, Origin=studio.address, Cookie=cookie) == 101


def test_the_token_becomes_a_cookie_and_leaves_the_address(
    studio: Studio, cookie: str, port: int
) -> None:
    status, headers, _ = ask(studio, f"/runs?a=b%26c&token={studio.token}")
    assert (status, headers["location"]) == (303, "./runs?a=b%26c")
    opens, names = set_cookies(headers)
    assert opens == [cookie, "Path=/", "HttpOnly", "SameSite=Strict"]
    assert names[0].partition("=")[0] == BROWSER_COOKIE
    assert set(names[1:]) - {"Max-Age=31536000"} == set(opens[1:])
    assert str(port) in cookie.partition("=")[0]
    assert studio.token not in str(headers)
    assert ask(studio, f"//evil.test/?token={studio.token}")[1]["location"] == "./"
    _, headers, text = ask(studio, f"/?token={studio.token}", Sec_Fetch_Site="cross-site")
    assert set_cookies(headers) == [opens]
    assert 'url=./"' in text
    assert studio.token not in text


def test_who_had_an_old_cookie_is_told_so(studio: Studio, cookie: str) -> None:
    before, after = ask(studio)[2], ask(studio, Cookie=f"{cookie}0")[2]
    assert "again" in after
    assert "again" not in before


def test_other_hosts_are_refused(studio: Studio, cookie: str, port: int) -> None:
    for host in (
        f"evil.test:{port}",
        "evil.test",
        f"127.0.0.1.evil.test:{port}",
        f"localhost.evil.test:{port}",
        f"127.0.0.1:{port + 1}",
        "127.0.0.1",
        f"127.0.0.2:{port}",
        f"me@127.0.0.1:{port}",
        f"127.0.0.1:{port}/x",
        f"127.0.0.1:{port}, evil.test",
        "",
        "studio.example.org:80",
        "studio.example.org.evil.test",
    ):
        for path in ROUTES:
            assert ask(studio, path, Host=host, Cookie=cookie)[0] in (400, 403), (host, path)
        assert ask(studio, f"/?token={studio.token}", Host=host)[0] in (400, 403), host
        origin = f"http://{host}"
        assert shake_hands(studio, Host=host, Origin=origin, Cookie=cookie) in (400, 403), host
    for host in (f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "studio.example.org"):
        assert ask(studio, Host=host, Cookie=cookie)[0] == 200, host
    headers = ask(studio, f"/?token={studio.token}", Host="studio.example.org")[1]
    cookies = set_cookies(headers)
    assert len(cookies) == 2
    assert all({"HttpOnly", "SameSite=Strict", "Secure"} <= set(words) for words in cookies)


def test_other_origins_are_refused(studio: Studio, cookie: str, port: int) -> None:
    for origin in (
        "http://evil.test",
        f"http://evil.test:{port}",
        f"http://127.0.0.1:{port + 1}",
        "http://127.0.0.1",
        f"https://127.0.0.1:{port}",
        f"http://127.0.0.2:{port}",
        "http://studio.example.org",
        "null",
        "",
        f"http://127.0.0.1:{port}.evil.test",
    ):
        assert shake_hands(studio, Origin=origin, Cookie=cookie) == 403, origin
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            path = "/_stcore/upload_file/session/file"
            assert ask(studio, path, method, Origin=origin, Cookie=cookie)[0] == 403, origin
    assert shake_hands(studio, Cookie=cookie) == 403  # without any
    for origin in (studio.address, f"http://localhost:{port}", "https://studio.example.org"):
        assert shake_hands(studio, Origin=origin, Cookie=cookie) == 101, origin
    for site in ("cross-site", "same-site"):
        for mode in ("no-cors", "cors", "websocket"):
            fetched = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": mode}
            assert ask(studio, "/_stcore/health", Cookie=cookie, **fetched)[0] == 403
    assert (
        ask(studio, Cookie=cookie, Sec_Fetch_Site="same-site", Sec_Fetch_Mode="navigate")[0] == 200
    )


def test_every_answer_has_the_headers(studio: Studio, cookie: str) -> None:
    for path in ROUTES:
        for headers in ({}, {"Cookie": cookie}, {"Host": "evil.test"}):
            found = ask(studio, path, **headers)[1]
            assert found["x-content-type-options"] == "nosniff", path
            assert found["referrer-policy"] == "no-referrer"
    for headers in ({}, {"Cookie": cookie}):
        rules = ask(studio, **headers)[1]["content-security-policy"].split("; ")
        sources = {word for rule in rules for word in rule.split()[1:]}
        assert "frame-ancestors 'none'" in rules
        assert not {"*", "'unsafe-eval'", "http:", "https:"} & sources
        assert all("unsafe-inline" not in rule for rule in rules if rule.startswith("script"))
        sources -= {"data:", "blob:", studio.address.replace("http", "ws", 1)}
        assert all(word[0] == "'" for word in sources)


def test_the_token_stands_in_no_command_and_no_readable_file(studio: Studio) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            assert studio.token not in (process / "cmdline").read_text(errors="replace")
        except OSError:
            continue
    for file in studio.workspace.iterdir():
        if file.is_file():
            assert not stat.S_IMODE(file.stat().st_mode) & 0o077 or (
                studio.token not in file.read_text(errors="replace")
            )
    assert stat.S_IMODE(studio.workspace.stat().st_mode) == 0o700


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, studio: Studio) -> Iterator[Callable[..., BrowserContext]]:
    with visits(browser, studio) as new_context:
        yield new_context


def text_of(page: Page, name: str) -> str:
    """The text of a page and of its fields, once it is drawn."""
    link = page.get_by_test_id("stTopNavLink").get_by_text(name, exact=True)
    link.click(delay=100)
    expect(page).to_have_url(
        re.compile(rf"/{name.lower() if name != 'Checkpoint' else ''}(\?.*)?$")
    )
    settled(page)
    expect(page.locator("[data-waits]")).to_have_count(0)  # hidden until their code is there
    fields: list[str] = page.locator("input").evaluate_all("all => all.map(one => one.value)")
    return " ".join([page.locator("body").inner_text(), *fields]).replace("\n", " ")


def foreign(addresses: list[str]) -> list[str]:
    """Those that hostile names lead to; behind a question mark stands what is open."""
    places = [address.partition("?")[0] for address in addresses]
    return [place for place in places if "pixel" in place or "evil" in place]


def is_text_alone(page: Page, what: str) -> None:
    """Nothing of the hostile names became markup anywhere in the page."""
    everywhere = page.locator("body")
    assert everywhere.locator("img").count() == 0, what
    links: list[str] = everywhere.locator("a[href]").evaluate_all("all => all.map(one => one.href)")
    assert not foreign(links), what
    coloured = page.locator("[class*=stMarkdownColored], [class*=stMarkdownBadge]")
    assert not [words for words in coloured.all_inner_texts() if "FAKED" in words], what
    for tag in ("b", "del", "em", "code", ".katex", "[role=img]"):
        inside = page.get_by_test_id("stMarkdownContainer").locator(tag).all_inner_texts()
        assert not {"y", "s", "u", "c", "x^2", "😄", "home"} & set(inside), (what, tag)
    assert page.get_by_test_id("stException").count() == 0, what


SIDEBAR = (f"{NAME} / moe", RECIPE)
"""Names of which the middle is left out; pointing at one shows the whole."""
EXPECTED = {
    "Recipe": RECIPE,
    "Tune": shortened(f"{NAME} / moe", SIDEBAR_NAME),
    "Upcycle": f"{NAME} / dense {NAME}",
}
"""What else a page shows, where it is not the name of a run or of the model's type."""


@pytest.mark.browser
def test_foreign_names_are_shown_as_they_are(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    context = visit(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(studio.address)
    for name in PAGES:
        text = text_of(page, name)
        assert not [words for words in SIDEBAR if shortened(words, SIDEBAR_NAME) not in text], name
        shown = page.locator("[title]").evaluate_all("all => all.map(one => one.title)")
        assert set(SIDEBAR) <= set(shown), name
        assert EXPECTED.get(name, LONG_NAME) in text, name
        is_text_alone(page, name)
        if name == "Runs":
            labels = page.locator(".js-plotly-plot .textpoint")
            expect(labels).to_have_count(2)
            shown = {" ".join(label.split()) for label in labels.all_text_contents()}
            assert shown == {shortened(f"{number} {LONG_NAME}", NAMED) for number in range(2)}
            dot = page.locator(".js-plotly-plot .scatterlayer .point").first
            dot.evaluate("one => one.scrollIntoView({block: 'center'})")
            dot.hover(force=True)  # what hears of the pointer lies above it
            whole = page.locator(".js-plotly-plot .hoverlayer")  # of the dot under the pointer
            expect(whole).to_contain_text(LONG_NAME[:40])
            expect(whole).to_contain_text(LONG_NAME[-40:])
            is_text_alone(page, "a dot under the pointer")
            assert page.locator(".js-plotly-plot svg a").count() == 0
    assert not foreign(asked)


@pytest.mark.browser
def test_a_repair_is_started_among_foreign_names(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    """The form refuses a text that is not there, files one that is, and the page tells what became
    of it: the packed checkpoint is gone."""
    page = visit(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(studio.address)
    text_of(page, "Runs")
    before = {job.id for job in studio.store.list(kind="repair")}
    form = page.get_by_test_id("stExpander").filter(has_text="Repair…").first
    form.get_by_text("Repair…").click()
    settled(page)
    expect(form.get_by_test_id("stMultiSelect")).to_contain_text("scales")  # all of it is there

    def start(text: Path) -> None:
        texts = form.get_by_role("textbox", name="Texts to train on")
        texts.fill(str(text))
        texts.blur()
        expect(form.get_by_test_id("stAlert")).to_have_count(0)  # what stands below it moves up
        settled(page)
        form.get_by_role("button", name="Repair", exact=True).click(delay=100)

    start(studio.workspace / LONG_NAME)
    expect(form.get_by_test_id("stAlert")).to_contain_text(NAME)
    is_text_alone(page, "a text that is not there")
    text = studio.workspace / NAME / f"text {NAME}.txt"
    text.write_text("A text of some words. " * 200)
    start(text)
    expect(form.get_by_test_id("stMultiSelect")).to_have_count(0)  # it is closed
    job = wait_for_job(studio, "repair", lambda job: job.state == "failed")
    assert job.id not in before
    assert job.spec["text"] == [str(text)]
    assert job.title.startswith(f"1 {LONG_NAME}")
    reason = page.get_by_test_id("stAlert").get_by_text(f"{NAME}/gone", exact=False)
    expect(reason.first).to_be_visible()
    is_text_alone(page, "a repair that failed")


@pytest.mark.browser
def test_the_browser_is_let_in_by_the_address_and_by_the_field(
    browser: Browser, studio: Studio
) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{studio.address}/runs")
        expect(page.get_by_text("DeRS Studio")).to_be_visible()
        assert page.get_by_test_id("stApp").count() == 0
        page.get_by_label("Token").fill(studio.token)
        page.get_by_role("button").click()
        expect(page.get_by_test_id("stSidebar")).to_be_visible()
        assert page.url.partition("?")[0] == f"{studio.address}/runs"
        assert page.evaluate("document.cookie").count("ders-studio") == 0
