"""Visitors of a running Streamlit server without a browser: one draw of a page, then they leave."""

from __future__ import annotations

from http.cookiejar import CookieJar
from urllib.parse import urlsplit
from urllib.request import HTTPCookieProcessor, build_opener

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

PATIENCE = 120.0
"""Seconds for one draw on a busy machine."""


class Visitor:
    """Someone who was given an address; cookies that it sets are sent back."""

    def __init__(self, address: str) -> None:
        jar = CookieJar()
        with build_opener(HTTPCookieProcessor(jar)).open(address, timeout=PATIENCE) as answer:
            answer.read()
        parts = urlsplit(address)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        path = parts.path.rstrip("/")
        self._socket = f"{self._origin.replace('http', 'ws', 1)}{path}/_stcore/stream"
        self._cookie = "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)
        self.session = ""
        self.texts: list[str] = []

    def look(self, page: str = "", *, back: bool = False) -> int:
        """Have a page drawn once, and leave. Returns how many messages it took; `texts` are then
        the Markdown that was drawn.

        back: come back to the session of the last look, as a browser does whose connection broke.
        """
        headers = {"Cookie": self._cookie} if self._cookie else {}
        before = ["none", self.session] if back else []
        self.texts = []
        with connect(
            self._socket,
            origin=Origin(self._origin),
            subprotocols=[Subprotocol(word) for word in ("streamlit", *before)],
            additional_headers=headers,
            max_size=None,
            open_timeout=PATIENCE,
        ) as socket:
            request = BackMsg()
            request.rerun_script.page_name = page
            socket.send(request.SerializeToString())
            for count in range(1, 100_000):
                message = ForwardMsg()
                message.ParseFromString(bytes(socket.recv(PATIENCE)))  # type: ignore[arg-type]
                kind = message.WhichOneof("type")
                if kind == "new_session":
                    self.session = message.new_session.initialize.session_id
                elif kind == "delta" and message.delta.new_element.WhichOneof("type") == "markdown":
                    self.texts.append(message.delta.new_element.markdown.body)
                if (
                    kind == "script_finished"
                    and message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY
                ):
                    return count
        raise AssertionError(f"{page or 'the first page'} was never drawn to its end")
