"""The code of elements that later pages show is known by the names of the installed Streamlit."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ders_core.ui.guard.later_code import ELEMENTS, script
from ders_core.ui.guard.start import SCRIPTS, STATIC


def names(text: str) -> list[str]:
    told = re.search(r"const names = (\[.*\]);", text)
    assert told is not None
    found: list[str] = json.loads(told[1])
    return found


def test_every_element_has_one_file() -> None:
    text = script(STATIC)
    assert [name.split(".")[0] for name in names(text)] == list(ELEMENTS)
    assert all((STATIC / "js" / name).is_file() for name in names(text))
    assert text in SCRIPTS  # the page's policy allows what stands there


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    assert names(script(tmp_path)) == []
