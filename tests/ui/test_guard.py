"""Hosts, origins, tokens and headers by themselves; tests/hold attacks a running studio."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit import config
from streamlit.web.server.app_discovery import discover_asgi_app
from support.messages import raises_saying
from support.shell import ders

from ders_core.errors import DersError
from ders_core.ui.guard.browser_cookie import BROWSER_COOKIE
from ders_core.ui.guard.middleware import Guard
from ders_core.ui.guard.origins import Origin, Origins, is_loopback, origin_of
from ders_core.ui.guard.policy import hash_of, inline_scripts, studio_headers
from ders_core.ui.guard.secret import Secret, take_secret

ROOT = Path(__file__).parents[2]
HERE = ("127.0.0.1", 8501)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("studio.example.org", Origin("https", "studio.example.org", 443)),
        ("Studio.Example.org:8443", Origin("https", "studio.example.org", 8443)),
        ("http://localhost:9000", Origin("http", "localhost", 9000)),
        ("https://[::1]", Origin("https", "::1", 443)),
        ("http://10.0.0.1/", Origin("http", "10.0.0.1", 80)),
    ],
)
def test_hosts_that_are_named(text: str, origin: Origin) -> None:
    assert origin_of(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "*.example.org",
        "a b",
        "ftp://a",
        "https://",
        "a/b",
        "me@a",
        "a:0",
        "a:99999",
        "ü.de",
    ],
)
def test_what_is_no_host_is_refused(text: str, tmp_path: Path) -> None:
    with raises_saying(DersError, repr(text), "host"):
        origin_of(text)
    done = ders("app", "--workspace", tmp_path / "w", "--port", 8598, "--allow-host", text)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "w").exists()


def test_what_the_app_was_started_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Machine")
    own = Origins.of("127.0.0.1")
    assert own.knows_host("localhost:8501", HERE)
    assert own.knows_host("[::1]:8501", HERE)
    assert not own.knows_host("machine:8501", HERE)
    assert not own.knows_host("192.0.2.7:8501", HERE)
    open_to_all = Origins.of("0.0.0.0")
    assert open_to_all.knows_host("machine:8501", HERE)
    assert open_to_all.knows_host("192.0.2.7:8501", ("192.0.2.7", 8501))
    assert open_to_all.knows_host("192.0.2.7:8501", ("::ffff:192.0.2.7", 8501))
    assert open_to_all.knows_host("[fe80::1]:8501", ("fe80::1%eth0", 8501))
    assert not open_to_all.knows_host("192.0.2.8:8501", ("192.0.2.7", 8501))
    assert not open_to_all.knows_host("0.0.0.0:8501", HERE)
    assert Origins.of("localhost").knows_host("localhost", ("127.0.0.1", 80))
    assert Origins.of("127.0.0.1", "https").knows_origin("https://localhost:8501", HERE)
    assert not Origins.of("127.0.0.1", "https").knows_origin("http://localhost:8501", HERE)


def test_who_is_reached_from_this_machine_only() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("no such host")


def test_tokens_are_random_and_not_in_cookies() -> None:
    secrets = [Secret.new() for _ in range(20)]
    assert len({secret.token for secret in secrets}) == 20
    assert min(len(secret.token) for secret in secrets) >= 43  # 256 bits in base 64
    for secret in secrets:
        assert secret.is_token(secret.token)
        assert secret.is_cookie(secret.cookie)
        assert not secret.is_token(secret.cookie)
        assert not secret.is_cookie(secret.token)
        assert secret.token not in secret.cookie
        assert secret.token not in repr(secret)
        assert not secret.is_token("\ud800")


def test_a_token_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DERS_TOKEN_FILE", raising=False)
    monkeypatch.setenv("DERS_TOKEN", "a-token-of-my-own")
    secret = take_secret()
    assert (secret.token, secret.given) == ("a-token-of-my-own", True)
    assert secret.in_address("http://a") == "http://a/"  # what is printed is often kept
    assert not take_secret().given  # no child inherits it
    file = tmp_path / "token"
    file.write_text("another-token-of-mine\n")
    monkeypatch.setenv("DERS_TOKEN_FILE", str(file))
    file.chmod(0o640)
    with raises_saying(DersError, file, "chmod 600"):
        take_secret()
    file.chmod(0o600)
    assert take_secret().token == "another-token-of-mine"
    monkeypatch.setenv("DERS_TOKEN_FILE", str(tmp_path / "gone"))
    with raises_saying(DersError, tmp_path / "gone"):
        take_secret()


@pytest.mark.parametrize("token", ["", "short", "x" * 600, "with blanks in the middle", "ü" * 20])
def test_a_token_that_cannot_be_used_is_refused(
    token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DERS_TOKEN", token)
    done = ders("app", "--workspace", tmp_path / "w", "--port", 8598)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "DERS_TOKEN" in done.stderr
    assert not token or token not in done.stderr
    assert not (tmp_path / "w").exists()


def test_the_policy_allows_streamlits_own_inline_scripts() -> None:
    index = Path(st.__file__).parent / "static" / "index.html"
    scripts = inline_scripts(index.read_text(encoding="utf-8"))
    assert scripts
    policy = dict(studio_headers(index, ["added"]))[b"content-security-policy"].decode()
    assert all(hash_of(script) in policy for script in [*scripts, "added"])


def answers(guard: Guard, **scope: Any) -> list[dict[str, Any]]:
    """What the guard sends for a GET of /."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    usual = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "server": HERE}
    asyncio.run(guard({**usual, "headers": [], **scope}, receive, send))
    return sent


async def _never(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("the studio was reached")


@pytest.mark.parametrize(
    "scope",
    [
        {"headers": []},
        {"headers": [(b"host", b"localhost:8501"), (b"host", b"evil.test")]},
        {"headers": [(b"host", b"localhost:8501")], "server": None},
        {"headers": [(b"host", b"localhost:8501"), (b"cookie", b'ders-studio-8501="')]},
        {"headers": [(b"host", b"localhost:8501"), (b"cookie", b"\xff\xfe=; ;=;[]")]},
        {"headers": [(b"host", b"localhost:8501")], "query_string": b"&".join([b"a=b"] * 1000)},
        {"headers": [(b"host", b"localhost:8501")], "query_string": b"token=%FF%FE\xff"},
    ],
)
def test_odd_requests_end_at_the_guard(scope: dict[str, Any]) -> None:
    guard = Guard(_never, origins=Origins.of("127.0.0.1"), secret=Secret.new(), headers=())
    assert answers(guard, **scope)[0]["status"] == 403


def test_a_browser_is_named_once_and_apart_from_others() -> None:
    """The name opens nothing: whoever sends it alone stands before the door."""
    secret = Secret.new()
    guard = Guard(_never, origins=Origins.of("127.0.0.1"), secret=secret, headers=())
    host = (b"host", b"localhost:8501")

    def named(*headers: tuple[bytes, bytes]) -> list[str]:
        query = f"token={secret.token}".encode()
        answer = answers(guard, headers=[host, *headers], query_string=query)[0]
        assert answer["status"] == 303
        cookies = [value.decode() for name, value in answer["headers"] if name == b"set-cookie"]
        return [cookie for cookie in cookies if cookie.startswith(BROWSER_COOKIE)]

    (first,), (second,) = named(), named()
    name, *words = first.split("; ")
    assert name != second.split("; ")[0]
    assert set(words) == {"Path=/", "Max-Age=31536000", "HttpOnly", "SameSite=Strict"}
    assert named((b"cookie", name.encode())) == [first]  # for a year from now
    assert len(named((b"cookie", f"{BROWSER_COOKIE}=<script>".encode()))) == 1
    assert answers(guard, headers=[host, (b"cookie", name.encode())])[0]["status"] == 403


def test_from_another_site_a_name_that_was_not_sent_stays() -> None:
    """Browsers send no `Strict` cookie then; the page that leads on to the studio is our own."""
    secret = Secret.new()
    guard = Guard(_never, origins=Origins.of("127.0.0.1"), secret=secret, headers=())
    headers = [(b"host", b"localhost:8501"), (b"sec-fetch-site", b"cross-site")]
    answer = answers(guard, headers=headers, query_string=f"token={secret.token}".encode())[0]
    cookies = [value.decode() for name, value in answer["headers"] if name == b"set-cookie"]
    assert [cookie.partition("=")[0] for cookie in cookies] == ["ders-studio-8501"]


def test_a_browser_that_was_admitted_before_is_named_as_it_opens_a_page() -> None:
    async def studio(scope: Any, receive: Any, send: Any) -> None:
        own = [(b"set-cookie", b"_streamlit_xsrf=1")]
        await send({"type": "http.response.start", "status": 200, "headers": own})

    secret = Secret.new()
    origins = Origins.of("127.0.0.1", further=[origin_of("studio.example.org")])
    guard = Guard(studio, origins=origins, secret=secret, headers=())

    def named(cookies: str, host: str, **fetched: bytes) -> list[str]:
        sent = f"ders-studio-8501={secret.cookie}; {cookies}"
        headers = [(b"host", host.encode()), (b"cookie", sent.encode())]
        headers += [(f"sec-fetch-{key}".encode(), value) for key, value in fetched.items()]
        answer = answers(guard, headers=headers)[0]
        assert answer["status"] == 200
        own, *names = [value.decode() for name, value in answer["headers"] if name == b"set-cookie"]
        assert own == "_streamlit_xsrf=1"
        return names

    (first,) = named("", "localhost:8501", mode=b"navigate")
    name, *words = first.split("; ")
    assert name.startswith(BROWSER_COOKIE)
    assert set(words) == {"Path=/", "Max-Age=31536000", "HttpOnly", "SameSite=Strict"}
    (behind_https,) = named(f"{BROWSER_COOKIE}=x", "studio.example.org", mode=b"navigate")
    assert "Secure" in behind_https.split("; ")
    assert named(name, "localhost:8501", mode=b"navigate") == []
    assert named("", "localhost:8501", mode=b"cors", site=b"same-origin") == []


def test_streamlit_run_starts_the_guarded_app(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`streamlit run app.py` finds an app in the file, with the guard before it."""
    assert discover_asgi_app(ROOT / "app.py").import_string == "app:app"
    monkeypatch.setattr(config, "_main_script_path", None)
    monkeypatch.delenv("DERS_LIFELINE", raising=False)
    spec = importlib.util.spec_from_file_location("app", ROOT / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    guards = [entry for entry in module.app._user_middleware if entry.cls is Guard]
    assert len(guards) == 1
    secret = guards[0].kwargs["secret"]
    assert f"/?token={secret.token}" in capsys.readouterr().out
