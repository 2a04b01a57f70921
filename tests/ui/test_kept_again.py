"""Values that a page sets reach the browser, also where a click starts the page anew."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest


def page() -> None:
    import streamlit as st

    from ders_core.ui import kept

    kept.page_begins()
    kept.field(st.multiselect, "Parts", key="parts", start=["a", "b"], options=["a", "b", "c"])
    if st.session_state.pop("draws", True):
        st.session_state["draws"] = False  # as if a click had started the page anew
    else:
        kept.page_ends()


def test_a_value_is_set_until_a_page_was_sent_to_its_end(app: AppTest) -> None:
    app = AppTest.from_function(page).run()
    app.run()
    (parts,) = app.multiselect
    assert parts.value == ["a", "b"]
    assert parts.proto.set_value
    assert list(parts.proto.raw_values) == ["a", "b"]
    app.run()
    assert not app.multiselect[0].proto.set_value  # what a person types meanwhile stays
    app.multiselect[0].set_value(["c"]).run()
    assert app.multiselect[0].value == ["c"]
