"""The studio as a user starts it, and a real browser before it.

Both end with the module whose tests used them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from support.job_waits import STILLNESS
from support.studio_process import Studio, running_studio

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Its absence fails in CI and skips, loudly, elsewhere."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    if executable is None:
        words = "no Chromium on this machine: the pages were NOT tested in a real browser"
        if os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    expect.set_options(timeout=1000 * STILLNESS)  # milliseconds; the machine may be busy
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """`ders app` in a workspace of its own, with its worker."""
    place = tmp_path_factory.mktemp("studio")
    with running_studio(place) as studio:
        yield studio
