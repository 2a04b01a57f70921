"""The studio as a user starts it, and a real browser before it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from studio_process import Studio

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium. Its absence fails in CI and skips, loudly, elsewhere."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        words = "no Chromium on this machine: the pages were NOT tested in a real browser"
        if os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    expect.set_options(timeout=120_000)  # milliseconds; the machine may be busy
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """`ders app` in a workspace of its own, with its worker."""
    place = tmp_path_factory.mktemp("studio")
    port = free_port()
    command = [sys.executable, "-c", "from ders_core.cli.main import main; main()", "app"]
    command += ["--workspace", str(place / "workspace"), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("DISPLAY", None)  # no second browser
    with open(place / "app.log", "wb") as log:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while "DeRS Studio: http" not in (place / "app.log").read_text():
            assert process.poll() is None, (place / "app.log").read_text()
            assert time.monotonic() < deadline, (place / "app.log").read_text()
            time.sleep(0.3)
        yield Studio(f"http://127.0.0.1:{port}", place / "workspace")
    finally:
        process.terminate()
        process.wait(30)
        subprocess.run(["pkill", "-f", str(place / "workspace")], check=False)
