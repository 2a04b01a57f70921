"""The studio's server sends what it has at once."""

from __future__ import annotations

import asyncio
import os
import socket
from http.client import HTTPConnection

import psutil
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

CONNECTED = psutil.CONN_ESTABLISHED


def waits(connection: socket.socket) -> bool:
    """Whether the system holds back the end of an answer until the browser confirms its beginning
    (Nagle's algorithm), which takes 40 ms of each request."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0


def sockets_of(port: int) -> list[socket.socket]:
    """Copies of this process's ends of the connections that came in at a port."""
    return [
        socket.socket(fileno=os.dup(each.fd))
        for each in psutil.Process().net_connections("tcp")
        if each.laddr and each.laddr.port == port and each.status == CONNECTED
    ]


@pytest.mark.skipif(os.name == "nt", reason="uvloop is not there")
def test_no_answer_waits_for_a_confirmation() -> None:
    """asyncio's own loop leaves Nagle's algorithm on for sockets that are bound as Streamlit binds
    them; with the loop that uvicorn takes by itself here, it is off."""
    found: list[bool] = []

    async def answer(_: object) -> PlainTextResponse:
        for connection in sockets_of(port):
            with connection:
                found.append(waits(connection))
        return PlainTextResponse("here")

    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.bind(("127.0.0.1", 0))
    bound.listen()
    port = int(bound.getsockname()[1])
    config = uvicorn.Config(Starlette(routes=[Route("/", answer)]), log_level="error")
    server = uvicorn.Server(config)

    def ask() -> bytes:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/")
        text = connection.getresponse().read()
        connection.close()
        return text

    async def visit() -> bytes:
        serving = asyncio.ensure_future(server.serve(sockets=[bound]))
        try:
            return await asyncio.get_running_loop().run_in_executor(None, ask)
        finally:
            server.should_exit = True
            await serving

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        assert runner.run(visit()) == b"here"
    assert found == [False]
