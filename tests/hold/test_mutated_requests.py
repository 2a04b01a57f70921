"""Requests whose host, origin, cookie or token is almost right do not pass the guard."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ders_core.ui.guard.middleware import Guard
from ders_core.ui.guard.origins import Origins, origin_of
from ders_core.ui.guard.secret import Secret

SEED = 19
PORT = 8501
SECRET = Secret.new()
COOKIE = f"ders-studio-{PORT}={SECRET.cookie}"
NAMES = ("localhost", "127.0.0.1", "::1")
HOSTS = (f"localhost:{PORT}", f"127.0.0.1:{PORT}", f"[::1]:{PORT}", "studio.example.org")
ORIGINS = (*(f"http://{host}" for host in HOSTS[:3]), "https://studio.example.org")
BITS = ("", ".", ":", "@", "/", " ", ",", "%", "#", "?", "\\", "[", "]", "0", "x", "é", "\t", ";")
WHOLE = ("evil.test", ":80", ":443", f":{PORT}", "http://", "https://", ".evil.test", "me@", "null")


def mutated(draw: random.Random, text: str) -> str:
    """The text with a few changes; sometimes as it was."""
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        at = draw.randrange(len(text) + 1)
        end = min(len(text), at + draw.choice((0, 0, 1, 1, 3)))
        text = text[:at] + draw.choice(BITS + WHOLE) + text[end:]
        text = draw.choice((text, text, text, text.upper(), text[::-1]))
    return text


def is_own(netloc: str, scheme: str) -> bool:
    """Whether Python's own reader of addresses finds one of ours."""
    try:
        parts = urlsplit(f"{scheme}://{netloc}")
        name, port = parts.hostname, parts.port or {"http": 80, "https": 443}[scheme]
    except ValueError:
        return False
    if "@" in netloc or parts.path or parts.query or parts.fragment or name is None:
        return False
    with suppress(ValueError):
        name = str(ip_address(name))
    return (scheme == "http" and name in NAMES and port == PORT) or (
        scheme == "https" and name == "studio.example.org" and port == 443
    )


class Passed(Exception):
    """The request came to the studio."""


async def _studio(scope: Any, receive: Any, send: Any) -> None:
    raise Passed


async def _passes(guard: Guard, scope: dict[str, Any]) -> tuple[bool, list[dict[str, Any]]]:
    """Whether the request came to the studio; what was answered otherwise."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the guard reads no body")

    try:
        await guard(scope, receive, send)
    except Passed:
        return True, sent
    return False, sent


async def _attack(count: int) -> tuple[int, int]:
    """How many requests passed, and how many were let in by a token."""
    draw = random.Random(SEED)
    origins = Origins.of("127.0.0.1", "http", [origin_of("studio.example.org")])
    guard = Guard(_studio, origins=origins, secret=SECRET, headers=())
    passed = admitted = 0
    for _ in range(count):
        kind = draw.choice(("http", "websocket"))
        wrong = draw.choice(("host", "origin", "cookie", "token", "all"))
        words = {
            "host": draw.choice(HOSTS),
            "origin": draw.choice(ORIGINS),
            "cookie": COOKIE,
            "token": SECRET.token,
        }
        for word in words if wrong == "all" else (wrong,):
            words[word] = mutated(draw, words[word])
        with_token = wrong == "token" or draw.random() < 0.2
        fields = {"host": words["host"]}
        if kind == "websocket" or draw.random() < 0.5:
            fields["origin"] = words["origin"]
        if not with_token:
            fields["cookie"] = words["cookie"]
        query = f"token={words['token']}" if with_token else ""
        scope = {
            "type": kind,
            "method": draw.choice(("GET", "POST")),
            "path": "/",
            "query_string": query.encode(),
            "server": ("127.0.0.1", PORT),
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        }
        came, sent = await _passes(guard, scope)
        let_in = any(pair[0] == b"set-cookie" for each in sent for pair in each.get("headers", ()))
        passed, admitted = passed + came, admitted + let_in
        if came or let_in:
            host = fields["host"]
            assert is_own(host, "http") or is_own(host, "https"), fields
            scheme, _, netloc = fields.get("origin", ORIGINS[0]).partition("://")
            assert scheme in ("http", "https"), fields
            assert is_own(netloc, scheme), fields
        if came:
            assert COOKIE in re.sub(r"[\s\"]", "", fields["cookie"]), fields
        if let_in:
            shown = dict(parse_qsl(query, keep_blank_values=True)).get("token", "")
            assert shown.strip() == SECRET.token, query
    return passed, admitted


def test_only_right_requests_pass(rounds: Callable[[int, int], int], tally: Counter[str]) -> None:
    count = rounds(2000, 300_000)
    tally["requests"] += count
    passed, admitted = asyncio.run(_attack(count))
    assert passed > count / 20  # right ones are among them
    assert admitted > count / 100
