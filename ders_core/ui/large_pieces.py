"""The browser's code is sent in large pieces.

Starlette reads a file 64 KiB at a time, each piece in a thread of its own: a visitor who draws a
plot for the first time fetches ten megabytes.
"""

from __future__ import annotations

from starlette.responses import FileResponse

PIECE = 1 << 20
"""Bytes that are read and sent at a time."""


def send_large_pieces() -> None:
    """From now on; of every file that this process serves."""
    FileResponse.chunk_size = PIECE
