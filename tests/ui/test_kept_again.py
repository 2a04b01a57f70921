"""Values that a page sets reach the browser, also where a click draws the page again at once."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from ders_core.ui import kept


def page() -> None:
    import streamlit as st

    from ders_core.ui import kept

    kept.field(st.multiselect, "Parts", key="parts", start=["a", "b"], options=["a", "b", "c"])
    kept.field(st.text_input, "Words", key="words", start="some")


def protos(app: AppTest) -> tuple[Any, Any]:
    return app.multiselect[0].proto, app.text_input[0].proto


def test_a_choice_is_told_again_for_a_while(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    app = AppTest.from_function(page).run()
    app.run()
    parts, words = protos(app)
    assert parts.set_value
    assert list(parts.raw_values) == ["a", "b"]
    assert not words.set_value  # what a person types meanwhile stays
    app.multiselect[0].set_value(["c"]).run()
    assert app.multiselect[0].value == ["c"]
    monkeypatch.setattr(kept, "UNSEEN_SECONDS", 0.0)
    app.run()
    assert not app.multiselect[0].proto.set_value
    assert app.multiselect[0].value == ["c"]
