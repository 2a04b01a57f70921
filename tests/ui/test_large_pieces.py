"""Files of the server go out in few pieces, whole."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import FileResponse

from ders_core.ui.large_pieces import PIECE, send_large_pieces


def pieces_of(file: Path) -> list[bytes]:
    """What is sent of a file, piece by piece."""
    sent: list[bytes] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("servers of this version tell by an error that nobody listens")

    asgi = {"version": "3.0", "spec_version": "2.4"}
    scope = {"type": "http", "asgi": asgi, "method": "GET", "path": "/", "headers": []}
    asyncio.run(FileResponse(file)(scope, receive, send))
    return sent


@pytest.mark.parametrize("size", [0, 1, PIECE, 2 * PIECE + 3])
def test_a_file_is_sent_whole_in_few_pieces(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileResponse, "chunk_size", FileResponse.chunk_size)  # set back
    send_large_pieces()
    file = tmp_path / "code.js"
    file.write_bytes(bytes(number % 251 for number in range(256)) * (size // 256 + 1))
    with open(file, "r+b") as opened:
        opened.truncate(size)
    pieces = pieces_of(file)
    assert b"".join(pieces) == file.read_bytes()
    assert len(pieces) <= size // PIECE + 2
