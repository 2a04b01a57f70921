"""A server on this machine, of which tests make the ones that they need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from threading import Thread
from typing import Any, Self


class LocalServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a client that finds no place tries again a second later

    @contextmanager
    def at_work(self) -> Iterator[Self]:
        """It answers, until it is left."""
        with self:
            thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield self
            finally:
                self.shutdown()
                thread.join()

    def handle_error(self, *_: Any) -> None:
        """Clients may hang up."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"
