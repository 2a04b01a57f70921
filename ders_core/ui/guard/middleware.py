"""The guard: every request and every WebSocket passes it before Streamlit sees anything."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, quote, urlencode

from ders_core.ui.guard.asgi import Application, Message, Receive, Scope, Send
from ders_core.ui.guard.browser_cookie import BROWSER_COOKIE, is_browser_name, naming_words
from ders_core.ui.guard.origins import Origin, Origins
from ders_core.ui.guard.policy import COMMON, Headers, as_headers, for_host
from ders_core.ui.guard.secret import Secret
from ders_core.ui.guard.token_page import ASK, EXPIRED, HEADERS, WRONG, onward_page, token_page

FOREIGN = ("cross-site", "same-site")
"""Values of `Sec-Fetch-Site` for what another page asks for; "same-site" are other ports, too."""

_PLAIN: Headers = as_headers({**COMMON, "Content-Type": "text/plain; charset=utf-8"})


class Guard:
    """ASGI middleware: only our own hosts and origins, only with the token, and headers that hold
    a page to our own origin.

    headers: added to every answer of the studio, in place of its own of these names.
    """

    def __init__(
        self, app: Application, *, origins: Origins, secret: Secret, headers: Headers
    ) -> None:
        self._app = app
        self._origins = origins
        self._secret = secret
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request = _Request(scope)
        host, refusal = self._host(request)
        if host is None or refusal:
            await _refuse(request, send, refusal)
        elif request.is_visit and request.token is not None:
            await self._admit(request, host, send)
        elif self._secret.is_cookie(request.cookie):
            await self._app(scope, receive, self._with_headers(request, host, send))
        elif request.is_visit:
            sentence = EXPIRED if request.cookie else ASK
            await _answer(send, 403, HEADERS, token_page(sentence))
        else:
            await _refuse(request, send, "The studio's token is missing. Open its page anew.\n")

    def _host(self, request: _Request) -> tuple[Origin | None, str]:
        """The own address that was asked for; and why the request is refused, or ""."""
        hosts, origins = request.values(b"host"), request.values(b"origin")
        host = self._origins.knows_host(hosts[0], request.here) if len(hosts) == 1 else None
        if host is None:
            return None, (
                "DeRS Studio was not started for this host. Open the address that `ders app` "
                "printed, or start it with --allow-host and this one's name.\n"
            )
        known = [self._origins.knows_origin(origin, request.here) for origin in origins]
        if len(known) > 1 or None in known or (request.is_websocket and not known):
            return host, "This request comes from a page of another origin.\n"
        if request.site in FOREIGN and not request.is_visit:
            return host, "This request comes from a page of another site.\n"
        if request.is_websocket and known[0] is not None:  # Streamlit compares the two
            request.set_host(known[0].netloc)
        return host, ""

    async def _admit(self, request: _Request, host: Origin, send: Send) -> None:
        """Set the cookie for a right token, keep the browser's name for another year, and go on to
        the address without the token."""
        admitted = self._secret.is_cookie(request.cookie)
        if not admitted and not self._secret.is_token(request.token or ""):
            await _answer(send, 403, HEADERS, token_page(WRONG))
            return
        opens = [f"{request.cookie_name}={self._secret.cookie}", "Path=/", "HttpOnly"]
        cookies = [_cookie(opens, request, host)]
        if request.site != "cross-site":  # it sends no name, so a new one would take its place
            cookies.append(_name_cookie(request, host))
        target = request.without_token
        if request.site in FOREIGN:
            await _answer(send, 200, (*HEADERS, *cookies), onward_page(target))
        else:
            place = (b"location", target.encode())
            await _answer(send, 303, (*HEADERS, *cookies, place), b"")

    def _with_headers(self, request: _Request, host: Origin, send: Send) -> Send:
        headers = for_host(self._headers, host.netloc, secure=request.is_secure(host))
        names = {name for name, _ in headers}
        if request.is_visit and not is_browser_name(request.kept(BROWSER_COOKIE)):
            headers = (*headers, _name_cookie(request, host))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [pair for pair in message.get("headers", ()) if pair[0].lower() not in names]
                message["headers"] = [*own, *headers]
            await send(message)

        return send_with_headers


class _Request:
    """What the guard reads of a request."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        server = scope.get("server") or ("", 0)
        self.here: tuple[str, int] = (str(server[0]), int(server[1] or 0))
        self.is_websocket: bool = scope["type"] == "websocket"
        self.site = next(iter(self.values(b"sec-fetch-site")), "none")

    def values(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for key, value in self._scope["headers"] if key == name]

    def set_host(self, host: str) -> None:
        others = [pair for pair in self._scope["headers"] if pair[0] != b"host"]
        self._scope["headers"] = [*others, (b"host", host.encode())]

    def is_secure(self, host: Origin) -> bool:
        """Whether the browser came by https: under a host's address, or as a proxy on this machine
        tells (X-Forwarded-Proto)."""
        return host.scheme == "https" or self._scope.get("scheme") in ("https", "wss")

    @property
    def is_visit(self) -> bool:
        """Whether a person opens a page. Programs say nothing of how they fetch."""
        if self.is_websocket or self._scope["method"] not in ("GET", "HEAD"):
            return False
        return self.values(b"sec-fetch-mode") in ([], ["navigate"])

    @property
    def cookie_name(self) -> str:
        """Browsers share the cookies of all ports of a host: each port has its own name."""
        return f"ders-studio-{self.here[1]}"

    @property
    def cookie(self) -> str:
        """The studio's cookie, or ""."""
        return self.kept(self.cookie_name)

    def kept(self, name: str) -> str:
        """The value of a cookie, or ""."""
        for header in self.values(b"cookie"):
            try:
                found = SimpleCookie(header).get(name)
            except CookieError:
                continue
            if found is not None:
                return found.value
        return ""

    @property
    def _query(self) -> list[tuple[str, str]]:
        text = self._scope.get("query_string", b"").decode("latin-1")
        try:
            return parse_qsl(text, keep_blank_values=True, max_num_fields=100)
        except ValueError:
            return []

    @property
    def token(self) -> str | None:
        """The token in the address; None without one."""
        return next((value.strip() for name, value in self._query if name == "token"), None)

    @property
    def without_token(self) -> str:
        """The same address, relative to itself, without the token."""
        page = quote(self._scope["path"].rpartition("/")[2])
        rest = urlencode([pair for pair in self._query if pair[0] != "token"])
        return f"./{page}" + (f"?{rest}" if rest else "")


def _cookie(words: list[str], request: _Request, host: Origin) -> tuple[bytes, bytes]:
    """A `Set-Cookie` header; browsers send the cookie to our own pages alone, behind https by https
    alone."""
    ends = ["SameSite=Strict", *(["Secure"] if request.is_secure(host) else [])]
    return b"set-cookie", "; ".join([*words, *ends]).encode()


def _name_cookie(request: _Request, host: Origin) -> tuple[bytes, bytes]:
    """Name a browser, or let it keep its name."""
    return _cookie(naming_words(request.kept(BROWSER_COOKIE)), request, host)


async def _refuse(request: _Request, send: Send, words: str) -> None:
    if request.is_websocket:
        await send({"type": "websocket.close", "code": 1008})  # before it is accepted: status 403
    else:
        await _answer(send, 403, _PLAIN, words.encode())


async def _answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": status, "headers": [*headers, length]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
