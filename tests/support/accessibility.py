"""What axe-core finds on a page that people with bad eyes, or without a mouse, cannot use."""

from __future__ import annotations

import time
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

GRAVE = ("serious", "critical")
ALSO = ("heading-order",)
"""Rules that axe-core takes less seriously; who listens to a page goes from heading to heading."""

PATIENCE = 20
"""Seconds for colours to fade into those of another theme, and for what moves to stand still."""

OF_COLOURS = ("color-contrast", "link-in-text-block")
"""Rules whose findings may differ between two themes of one page."""


def grave_findings(page: Page, *rules: str) -> list[str]:
    """Rule, element and reason of every finding that matters, once the page is still.

    rules: of axe-core; all of them, if none is named.
    """
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": list(rules)}
    until = time.monotonic() + PATIENCE
    while (found := _findings(page, options)) and time.monotonic() < until:
        page.wait_for_timeout(500)
    return found


def _findings(page: Page, options: dict[str, Any]) -> list[str]:
    violations: list[dict[str, Any]] = Axe().run(page, options=options).response["violations"]
    return [
        f"{each['id']}: {node['html'][:200]}: {node['failureSummary']}"
        for each in violations
        if each["impact"] in GRAVE or each["id"] in ALSO
        for node in each["nodes"]
    ]
