"""Start the studio: a worker process, the Streamlit server, the browser."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext, suppress
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
        TOKEN_VARIABLE: secret.token,
        HOSTS_VARIABLE: " ".join(hosts),
    }
    if with_demo:
        environment[DEMO_VARIABLE] = "1"
    ahead = begun_demo(place) if is_expected(place, environment) else nullcontext(([], {}))
    with _server(command, environment, entry.parent, ahead) as server, suppress(KeyboardInterrupt):
        if _wait_for(listening, server):
            served = _setting("server.baseUrlPath", entry.parent) if path is None else path
            scheme = "https" if _setting("server.sslCertFile", entry.parent) else "http"
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
) -> Iterator[subprocess.Popen[bytes]]:
    """The server's process, which ends with the block, and with this process, however it ends.

    ahead: begins what the server takes over.
    """
    reading, writing = os.pipe()
    environment = environment | {LIFELINE_VARIABLE: str(reading)}
    try:
        with ahead as (files, variables):
            server = subprocess.Popen(
                command,
                env=environment | variables,
                cwd=directory,
                pass_fds=[reading, *files],
            )
        os.close(reading)
        try:
            yield server
        finally:
            server.terminate()
            server.wait()
    finally:
        os.close(writing)


def _wait_for(listening: Listening, server: subprocess.Popen[bytes], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        if listening.answers():
            return True
        time.sleep(0.2)
    return False


def _setting(name: str, directory: Path) -> str:
    """A setting of Streamlit's, as a server that is started in a directory reads it; "" for none.

    From the environment, as in STREAMLIT_SERVER_BASE_URL_PATH, or from its configuration files.
    """
    variable = re.sub("([A-Z])", r"_\1", f"streamlit.{name}").replace(".", "_").upper()
    if variable in os.environ:
        return os.environ[variable]
    with chdir(directory):
        from streamlit import config

        return str(config.get_option(name) or "")


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
