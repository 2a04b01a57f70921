"""What `--json` prints is JSON that commands no terminal."""

from __future__ import annotations

import contextlib
import io
import json

from hypothesis import given
from hypothesis import strategies as st

from ders_core.cli.console import print_json


@given(st.dictionaries(st.text(), st.lists(st.text())))
def test_any_text_is_read_back_and_printable(value: dict[str, list[str]]) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_json(value)
    assert json.loads(out.getvalue()) == value
    assert out.getvalue().replace("\n", "").isprintable()


def test_letters_stay_as_they_are() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_json({"Größe": "字‮\x9b𐏿\U000e0041"})
    assert "Größe" in out.getvalue()
    assert "字\\u202e\\u009b" in out.getvalue()
