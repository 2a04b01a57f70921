"""Where `ders app` listens: what it prints opens the studio; what it cannot do is a sentence."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import HTTPCookieProcessor, build_opener

import pytest
from support.messages import raises_saying
from support.shell import ders
from support.studio_process import HANG_UP, environments_of, running_studio

from ders_core.errors import DersError
from ders_core.ui.address import Listening, base_path_of
from ders_core.ui.demo import DEMO_VARIABLE

HAS_IPV6 = socket.has_ipv6 and os.path.exists("/proc/net/if_inet6")


def pages(*addresses: str) -> list[str]:
    """What a browser that keeps cookies is shown at one address after the other."""
    browser, texts = build_opener(HTTPCookieProcessor()), []
    for address in addresses:
        with browser.open(address, timeout=30) as answer:
            assert answer.status == 200
            texts.append(answer.read().decode())
    return texts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "variables", "printed", "end"),
    [
        (
            ["--demo"],
            {"STREAMLIT_SERVER_BASE_URL_PATH": "/tools/ders/"},
            "http://127.0.0.1:PORT/tools/ders",
            signal.SIGKILL,
        ),
        pytest.param(
            ["--address", "::1", "--base-path", "lab"],
            {"STREAMLIT_SERVER_BASE_URL_PATH": "elsewhere"},
            "http://[::1]:PORT/lab",
            HANG_UP,
            marks=pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6"),
        ),
    ],
)
def test_what_is_printed_opens_the_studio(
    tmp_path: Path,
    options: list[str],
    variables: dict[str, str],
    printed: str,
    end: signal.Signals,
) -> None:
    """No other address is printed. The browser gets it in a file that only its user can read: other
    users see the words of a command. A command that is killed frees its port."""
    opened, browser = tmp_path / "opened.txt", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> "{opened}"\n')
    browser.chmod(0o755)
    variables = variables | {"BROWSER": str(browser), "DISPLAY": ":0"}
    with running_studio(tmp_path, *options, variables=variables) as studio:
        assert re.sub(r":\d+(?=/|$)", ":PORT", studio.address) == printed
        page, health = pages(studio.door, f"{studio.address}/_stcore/health")
        assert "streamlit" in page.lower()
        assert health == "ok"
        assert studio.app.poll() is None
        environments = list(environments_of(studio.workspace).values())
        assert any(DEMO_VARIABLE in names for names in environments) == ("--demo" in options)
        while not opened.exists() or not opened.read_text().endswith("\n"):
            assert studio.app.poll() is None
        (file,) = opened.read_text().split()
        opener = Path(file.removeprefix("file://"))
        assert f'url={studio.door}"' in opener.read_text()
        assert stat.S_IMODE(opener.stat().st_mode) == 0o600
        said = studio.log.read_text()
        assert set(re.findall(r"https?://\S+", said)) == {studio.door}
        studio.app.send_signal(end)
        studio.app.wait()
        host, port = urlsplit(studio.address).hostname, urlsplit(studio.address).port
        assert host is not None
        assert port is not None
        while Listening(host, port).answers():
            time.sleep(0.1)
        Listening(host, port).check()


@pytest.mark.parametrize(
    ("host", "port", "base_path", "address"),
    [
        ("127.0.0.1", 8501, "", "http://127.0.0.1:8501"),
        ("127.0.0.1", 8501, "/", "http://127.0.0.1:8501"),
        ("::1", 80, "/a/b/", "http://[::1]:80/a/b"),
        ("0.0.0.0", 9, "a", "http://127.0.0.1:9/a"),
        ("::", 9, "", "http://[::1]:9"),
        ("localhost", 9, "a b", "http://localhost:9/a%20b"),
    ],
)
def test_addresses(host: str, port: int, base_path: str, address: str) -> None:
    assert Listening(host, port).url(base_path) == address


def test_who_reaches_it() -> None:
    assert Listening("127.0.0.1", 1).is_private
    assert Listening("::1", 1).is_private
    assert Listening("localhost", 1).is_private
    assert not Listening("0.0.0.0", 1).is_private
    assert not Listening("::", 1).is_private


@pytest.fixture(params=["127.0.0.1", "::1"] if HAS_IPV6 else ["127.0.0.1"])
def taken(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """An address on which somebody listens already."""
    host: str = request.param
    with socket.create_server((host, 0), family=_family(host)) as server:
        yield host, server.getsockname()[1]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def test_a_taken_port_is_refused_before_any_work(taken: tuple[str, int], tmp_path: Path) -> None:
    host, port = taken
    done = ders("app", "--workspace", tmp_path / "w", "--address", host, "--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"port {port} is taken" in done.stderr
    suggested = int(re.findall(r"\d+", done.stderr)[-1])
    assert suggested != port
    Listening(host, suggested).check()
    assert not (tmp_path / "w").exists()


def test_the_last_port_has_another_suggestion() -> None:
    with socket.socket() as server:
        try:
            server.bind(("127.0.0.1", 65535))
        except OSError:
            pass  # somebody else listens there
        else:
            server.listen()
        with pytest.raises(DersError, match="port 65535 is taken") as refused:
            Listening("127.0.0.1", 65535).check()
    assert int(re.findall(r"\d+", str(refused.value))[-1]) < 65535


@pytest.mark.parametrize("host", ["192.0.2.1", "not a host", "2001:db8::1"])
def test_an_address_of_another_machine_is_refused(host: str, tmp_path: Path) -> None:
    done = ders("app", "--workspace", tmp_path / "w", "--address", host, "--port", 8599)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert repr(host) in done.stderr
    assert "127.0.0.1" in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("text", ["a b", "../up", "a//b", "a?b", "http://host/a", "ü"])
def test_what_is_no_base_path_is_refused(text: str) -> None:
    with raises_saying(DersError, repr(text), "path"):
        base_path_of(text)


@pytest.mark.parametrize(
    ("text", "path"), [("/a/b/", "a/b"), ("/", ""), ("", ""), ("x.y~z-_1", "x.y~z-_1")]
)
def test_base_paths(text: str, path: str) -> None:
    assert base_path_of(text) == path
