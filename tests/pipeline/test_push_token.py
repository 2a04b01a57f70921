"""The token of a hub goes nowhere else, and hubs that are none are told in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.hub_server import TOKEN, HubServer, serving_hub
from support.messages import raises_saying

from ders_core.errors import OutputError
from ders_core.files.hub import Hub, endpoint, host

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    for variable in PROXIES:
        monkeypatch.delenv(variable, raising=False)
    with serving_hub(monkeypatch) as server:
        yield server


@pytest.mark.parametrize(
    "address",
    [
        "huggingface.co",
        "ftp://hub.example",
        "file:///etc",
        "https://",
        "http://[::1",
        "https://hub.example:99999",
        "https://hub.example:x",
        "https://hub example",
        "https://hub.example?key=a",
        "https://me:hushhush@hub.example",
    ],
)
def test_what_is_no_address_of_a_hub(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(OutputError, match=r"HF_ENDPOINT.*https://HOST") as caught:
        Hub()
    assert "hushhush" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["hub.example", "10.0.0.7", "127.0.0.1.hub.example", "localhost.example", "0x7f.1"]
)
def test_no_token_travels_readable(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{name}:80")
    with raises_saying(OutputError, name, "HF_TOKEN", "https://"):
        Hub()
    monkeypatch.setenv("HF_ENDPOINT", f"https://{name}/hub/")
    assert (endpoint(), host()) == (f"https://{name}/hub", name)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "127.8.8.8"])
def test_http_is_for_this_machine(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{name}:1")
    assert Hub().host == f"{name}:1"


@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
def test_no_proxy_reads_the_token(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with raises_saying(OutputError, hub.host, "proxy", "NO_PROXY"):
        Hub()
    monkeypatch.setenv("NO_PROXY", "localhost, 127.0.0.1")
    Hub().check_rights("me")
    assert hub.asked == ["GET /api/whoami-v2"]


@pytest.mark.parametrize("inner", ["\n", " ", "\x7f", "\u00e4", "\udcff"])
def test_a_token_that_no_header_carries(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"hf_hush{inner}hush")
    with pytest.raises(OutputError, match=r"HF_TOKEN.*copy") as caught:
        Hub()
    assert "hush" not in str(caught.value)
    assert hub.asked == []


def test_no_part_of_the_token_is_told_where_words_are_cut(hub: HubServer) -> None:
    hub.refuse["GET /api/whoami-v2"] = (400, "x" * 290 + TOKEN)
    with pytest.raises(OutputError, match="400") as caught:
        Hub().check_rights("me")
    assert TOKEN[:4] not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        "me",
        {},
        {"name": None},
        {"name": "me", "orgs": 3},
        {"name": "me", "orgs": [{}]},
        {"name": "me", "auth": None},
        {"name": "me", "auth": {"accessToken": None}},
        {"name": "me", "auth": {"accessToken": "x"}},
    ],
    ids=json.dumps,
)
def test_an_answer_that_no_hub_gives(hub: HubServer, answer: Any) -> None:
    hub.answers["GET /api/whoami-v2"] = json.dumps(answer)
    with raises_saying(OutputError, hub.host, "HF_ENDPOINT", "as a hub does"):
        Hub().check_rights("me")


@pytest.mark.parametrize("page", ["", "<html>log in</html>", '{"name": "me"'])
def test_a_page_in_place_of_json(hub: HubServer, page: str) -> None:
    hub.answers["GET /api/"] = page
    with raises_saying(OutputError, hub.host, "HF_ENDPOINT", "as a hub does"):
        Hub().check_rights("me")
    with raises_saying(OutputError, "me/x", hub.host, "HF_ENDPOINT", "as a hub does"):
        Hub().repository("me/x")


def test_a_redirect_does_not_take_the_token_along(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer().at_work() as other:
        hub.onward["GET /api/whoami-v2"] = f"http://{other.host}"
        with raises_saying(OutputError, "HF_TOKEN"):
            Hub().check_rights("me")
        assert other.asked == ["GET /api/whoami-v2"]
        assert other.keys == {None}
