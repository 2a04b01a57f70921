"""A file server that knows ranges, and counts what it is asked and what it sends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

from support.local_server import LocalServer

API = "/api/models/owner/repo"


class Server(LocalServer):
    """sent: bytes, headers included. fails: how many requests for ranges are yet to be cut off.

    The directory is also `owner/repo` of a hub.
    """

    def __init__(self, directory: Path, ranges: bool, lists: bool, status: int | None) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(directory)))
        self.ranges, self.lists, self.status = ranges, lists, status
        self.sent = self.requests = self.fails = 0
        self.logins: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://{self.host}"


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        write = self.wfile.write

        def counted(data: Any) -> int:
            self.server.sent += len(data)
            return write(data)

        self.wfile.write = counted  # type: ignore[method-assign]

    def log_message(self, *_: Any) -> None:
        pass

    def list_directory(self, path: Any) -> Any:
        if self.server.lists:
            return super().list_directory(path)
        return self.send_error(404)

    def do_HEAD(self) -> None:
        self.server.requests += 1
        if self.server.status:
            self.send_error(self.server.status)
        else:
            super().do_HEAD()

    def do_GET(self) -> None:
        self.server.requests += 1
        self.server.logins.add(self.headers["Authorization"])
        if self.path.startswith(f"{API}/tree/main"):
            return self._send_json(
                [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0"}
                    for file in Path(self.directory).iterdir()
                ]
            )
        if self.path.startswith(API):
            return self._send_json({"id": "owner/repo", "siblings": []})
        self.path = self.path.removeprefix("/owner/repo/resolve/main")
        file = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if self.server.status:
            self.send_error(self.server.status)
        elif wanted and self.server.fails:
            self.server.fails -= 1
            self.close_connection = True
            self.connection.shutdown(SHUT_RDWR)
        elif wanted and self.server.ranges and file.is_file():
            self._send(file, int(wanted[1]), int(wanted[2]) + 1)
        else:
            super().do_GET()

    def _send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, file: Path, begin: int, end: int) -> None:
        size = file.stat().st_size
        end = min(end, size)
        if begin >= end:
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        with open(file, "rb") as handle:
            handle.seek(begin)
            self.wfile.write(handle.read(end - begin))


@contextmanager
def serving(
    directory: Path, *, ranges: bool = True, lists: bool = True, status: int | None = None
) -> Iterator[Server]:
    """Serve a directory. status: what every request is answered with."""
    with Server(directory, ranges, lists, status).at_work() as server:
        yield server
