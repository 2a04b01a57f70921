"""Streamlit looks for components of pages in every installed package; the studio has none.

It reads the description of each package for that, before the first visitor is answered.
"""

from __future__ import annotations

from streamlit.components.v2 import manifest_scanner


def search_no_packages() -> None:
    """From now on; for the server that this process starts."""
    manifest_scanner.scan_component_manifests = lambda max_workers=None: []
