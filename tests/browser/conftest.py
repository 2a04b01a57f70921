"""The studio as a user starts it, and a real browser before it.

Both end with the folder: its tests share them, and run in one process (`tests/conftest.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext
from support.browsing import chromium, visits
from support.studio_process import Studio, running_studio


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="package")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """`ders app` in a workspace of its own, with its worker."""
    place = tmp_path_factory.mktemp("studio")
    with running_studio(place) as studio:
        yield studio


@pytest.fixture
def visit(browser: Browser, studio: Studio) -> Iterator[Callable[..., BrowserContext]]:
    with visits(browser, studio) as new_context:
        yield new_context
