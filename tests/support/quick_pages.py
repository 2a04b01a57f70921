"""What Streamlit's tester does again for each app and each refresh, and a server once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from streamlit.components.v2 import manifest_scanner
from streamlit.runtime.scriptrunner.script_cache import ScriptCache
from streamlit.testing.v1 import local_script_runner


@pytest.fixture(scope="session", autouse=True)
def prepared_once() -> Iterator[None]:
    """Pages are compiled once, and installed packages are searched for components once."""
    compiled, found = ScriptCache(), manifest_scanner.scan_component_manifests()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_script_runner, "ScriptCache", lambda: compiled)
        patch.setattr(manifest_scanner, "scan_component_manifests", lambda: found)
        yield
