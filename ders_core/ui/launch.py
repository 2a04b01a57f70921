"""Start the studio: a worker process, the Streamlit server, the browser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path

from ders_core.errors import DersError
from ders_core.files.package_data import shipped
from ders_core.jobs import JobStore, Workspace, default_workspace, ensure_worker
from ders_core.jobs.workspace import ROOTS_VARIABLE, WORKSPACE_VARIABLE

HOST = "127.0.0.1"


def launch(
    workspace: Path | None, *, port: int, with_demo: bool, scheduler: str | None = None
) -> None:
    """Run the app until it is interrupted. The worker lives on until its jobs are done.

    Raises DersError if the port is taken.
    """
    place = Workspace(workspace) if workspace else default_workspace()
    _check_port(port)
    _allow_here()
    ensure_worker(place, scheduler=scheduler)
    if with_demo and not place.demo.exists():
        store = JobStore(place.store_path)
        if not store.list(states=["queued", "running"], kind="demo"):
            store.submit("demo", {})
    address = f"http://{HOST}:{port}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, for service managers
    entry = shipped("app.py")
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(entry)),
        *("--server.address", HOST, "--server.port", str(port), "--server.headless", "true"),
        *("--browser.gatherUsageStats", "false"),
    ]
    environment = os.environ | {WORKSPACE_VARIABLE: str(place.path)}
    server = subprocess.Popen(command, env=environment, cwd=entry.parent)
    try:
        if _wait_for(port, server):
            print(
                f"DeRS Studio: {address}   (workspace {place.path}; stop with Ctrl-C)", flush=True
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


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DersError(
                f"port {port} is taken; give another with --port, for instance {port + 1}"
            ) from error


def _wait_for(port: int, server: subprocess.Popen[bytes], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((HOST, port)) == 0:
                return True
        time.sleep(0.2)
    return False


def _open_browser(address: str) -> None:
    """Open a browser if there is a screen; a text browser would take over the terminal."""
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)
