"""A server that starts does not look into the packages that are installed."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.components.v2 import manifest_scanner
from streamlit.components.v2.component_manager import BidiComponentManager

from ders_core.ui.own_components import search_no_packages


def test_no_package_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []

    def search(max_workers: int | None = None) -> list[Any]:
        searched.append("all of them")
        return []

    def start() -> None:
        BidiComponentManager().discover_and_register_components(start_file_watching=False)

    monkeypatch.setattr(manifest_scanner, "scan_component_manifests", search)  # and set back
    start()
    assert searched == ["all of them"]
    search_no_packages()
    start()
    assert searched == ["all of them"]
