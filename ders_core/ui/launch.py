"""Start the studio: a worker process, the Streamlit server, the browser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from html import escape
from pathlib import Path

from ders_core.errors import DersError
from ders_core.files.package_data import shipped
from ders_core.files.private import private_file
from ders_core.jobs import Workspace, default_workspace, ensure_worker
from ders_core.jobs.workspace import WORKSPACE_VARIABLE, allow_current_root
from ders_core.ui.address import HOST, Listening, base_path_of
from ders_core.ui.calculator import HandedOver
from ders_core.ui.demo import DEMO_VARIABLE, begun_demo, is_expected
from ders_core.ui.guard.lifeline import LIFELINE_VARIABLE
from ders_core.ui.guard.origins import HOSTS_VARIABLE, origin_of
from ders_core.ui.guard.secret import TOKEN_VARIABLE, Secret, take_secret

SAID = 4096
"""Bytes that a server says at most."""

OPENER = "open.html"
"""In the workspace: a page that leads the browser to the studio. Other users can see what a command
is called with, so a browser is not called with an address that holds the token."""


def launch(
    workspace: Path | None,
    *,
    port: int,
    with_demo: bool,
    scheduler: str | None = None,
    host: str = HOST,
    base_path: str | None = None,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Run the app until it is interrupted. The worker lives on until its jobs are done.

    host: what the app listens on. base_path: below which path it is served; None for what
    Streamlit's own settings say. allowed_hosts: further hosts under which browsers reach it, as a
    proxy's. Raises DersError if nothing can listen there, if one of these is not a host, or if the
    token that the environment names cannot be used.
    """
    place = Workspace(workspace) if workspace else default_workspace()
    listening = Listening(host.removeprefix("[").removesuffix("]"), port)
    path = None if base_path is None else base_path_of(base_path)
    hosts = [*os.environ.get(HOSTS_VARIABLE, "").split(), *allowed_hosts]
    for allowed in hosts:
        origin_of(allowed)
    secret = take_secret()
    listening.check()
    allow_current_root()
    (place.path / OPENER).unlink(missing_ok=True)
    ensure_worker(place, scheduler=scheduler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, for service managers
    entry = shipped("app.py")
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(entry)),
        *("--server.address", listening.host, "--server.port", str(port)),
        *("--server.headless", "true", "--browser.gatherUsageStats", "false"),
        *("--logger.hideWelcomeMessage", "true"),  # its address is wrong for IPv6
        *(() if path is None else ("--server.baseUrlPath", path)),
    ]
    environment = os.environ | {
        WORKSPACE_VARIABLE: str(place.path),
        HOSTS_VARIABLE: " ".join(hosts),
    }
    if with_demo:
        environment[DEMO_VARIABLE] = "1"
    ahead = (
        begun_demo(place, entry.parent, environment)
        if is_expected(place, environment)
        else nullcontext(([], {}))
    )
    for_server = environment | {TOKEN_VARIABLE: secret.token}
    with (
        _server(command, for_server, entry.parent, ahead) as (server, line),
        suppress(KeyboardInterrupt),
    ):
        if _wait_for(listening, server) and (said := line.recv(SAID)):
            scheme, _, served = said.decode().rstrip("\n").partition(" ")
            address = secret.in_address(listening.url(served, scheme))
            print(
                f"DeRS Studio: {address}   (workspace {place.path}; stop with Ctrl-C)", flush=True
            )
            if secret.given:
                print("It asks for the token that the environment names.", flush=True)
            if not listening.is_private:
                print(f"Other machines reach {host}:{port}, too, with the token.", flush=True)
            _open_browser(address, secret, place.path / OPENER)
        server.wait()
    (place.path / OPENER).unlink(missing_ok=True)
    if server.returncode not in (0, -signal.SIGTERM):
        raise DersError(f"the app stopped with status {server.returncode}; see its output above")


@contextmanager
def _server(
    command: Sequence[str],
    environment: dict[str, str],
    directory: Path,
    ahead: AbstractContextManager[HandedOver],
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """The server's process, which ends with the block, and with this process, however it ends; and
    where it says by what scheme and below which path it serves, as its own settings have it.

    ahead: begins what the server takes over.
    """
    line, held = socket.socketpair()
    with line:
        with held, ahead as (files, variables):
            server = subprocess.Popen(
                command,
                env=environment | variables | {LIFELINE_VARIABLE: str(held.fileno())},
                cwd=directory,
                pass_fds=[held.fileno(), *files],
            )
        try:
            yield server, line
        finally:
            server.terminate()
            server.wait()


def _wait_for(listening: Listening, server: subprocess.Popen[bytes], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        if listening.answers():
            return True
        time.sleep(0.2)
    return False


def _open_browser(address: str, secret: Secret, opener: Path) -> None:
    """Open a browser if there is a screen; a text browser would take over the terminal."""
    screens = map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))
    if sys.platform == "linux" and not any(screens):
        return
    if not secret.given:
        link = escape(address, quote=True)
        private_file(opener)
        opener.write_text(
            '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
            f'<meta http-equiv="refresh" content="0; url={link}"><a href="{link}">DeRS Studio</a>'
        )
        address = opener.as_uri()
    webbrowser.open(address)
