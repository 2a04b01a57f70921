"""Start the studio: a worker process, the Streamlit server, the browser."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import webbrowser
from contextlib import chdir
from pathlib import Path

from ders_core.errors import DersError
from ders_core.files.package_data import shipped
from ders_core.jobs import JobStore, Which, Workspace, default_workspace, ensure_worker
from ders_core.jobs.workspace import ROOTS_VARIABLE, WORKSPACE_VARIABLE
from ders_core.ui.address import HOST, Listening, base_path_of


def launch(
    workspace: Path | None,
    *,
    port: int,
    with_demo: bool,
    scheduler: str | None = None,
    host: str = HOST,
    base_path: str | None = None,
) -> None:
    """Run the app until it is interrupted. The worker lives on until its jobs are done.

    host: what the app listens on. base_path: below which path it is served; None for what
    Streamlit's own settings say. Raises DersError if nothing can listen there.
    """
    place = Workspace(workspace) if workspace else default_workspace()
    listening = Listening(host.removeprefix("[").removesuffix("]"), port)
    path = None if base_path is None else base_path_of(base_path)
    listening.check()
    _allow_here()
    ensure_worker(place, scheduler=scheduler)
    if with_demo and not place.demo.exists():
        store = JobStore(place.store_path)
        if not store.count(Which(("demo",), ("queued", "running"))):
            store.submit("demo", {})
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, for service managers
    entry = shipped("app.py")
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(entry)),
        *("--server.address", listening.host, "--server.port", str(port)),
        *("--server.headless", "true", "--browser.gatherUsageStats", "false"),
        *("--logger.hideWelcomeMessage", "true"),  # its address is wrong for IPv6
        *(() if path is None else ("--server.baseUrlPath", path)),
    ]
    environment = os.environ | {WORKSPACE_VARIABLE: str(place.path)}
    server = subprocess.Popen(command, env=environment, cwd=entry.parent)
    try:
        if _wait_for(listening, server):
            served = _setting("server.baseUrlPath", entry.parent) if path is None else path
            scheme = "https" if _setting("server.sslCertFile", entry.parent) else "http"
            address = listening.url(served, scheme)
            print(
                f"DeRS Studio: {address}   (workspace {place.path}; stop with Ctrl-C)", flush=True
            )
            if not listening.is_private:
                print(
                    f"Anyone who reaches {host}:{port} can use it; it asks for no password.",
                    flush=True,
                )
            _open_browser(address)
        status = server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        status = 0
    if status not in (0, -15):
        raise DersError(f"the app stopped with status {status}; see its output above")


def _allow_here() -> None:
    """Add the current directory to the roots of the app and the worker."""
    roots = [os.environ.get(ROOTS_VARIABLE, ""), str(Path.cwd())]
    os.environ[ROOTS_VARIABLE] = os.pathsep.join(filter(None, roots))


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


def _open_browser(address: str) -> None:
    """Open a browser if there is a screen; a text browser would take over the terminal."""
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)
