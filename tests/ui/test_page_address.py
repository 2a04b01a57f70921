"""What is open and chosen stands in the page's address, for a copied link and a reload."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest
from support.studio_pages import opened, words

from ders_core.jobs import Workspace
from ders_core.ui.opened import Open


def test_a_link_opens_its_checkpoint_for_the_session_that_follows_it(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, qwen2_moe_dir: Path
) -> None:
    opened(app, mixtral_dir)
    saved = Open.load(workspace)
    other = AppTest.from_file(app._script_path, default_timeout=60)
    other.query_params["checkpoint"] = str(qwen2_moe_dir)
    other.run()
    assert "qwen2_moe" in words(other)
    assert other.query_params["checkpoint"] == str(qwen2_moe_dir)
    assert Open.load(workspace) == saved


def test_a_link_out_of_the_roots_or_to_an_address_opens_nothing(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    opened(app, mixtral_dir)
    for place in ("/etc", "hf://somebody/something", "no\0path"):
        other = AppTest.from_file(app._script_path, default_timeout=60)
        other.query_params["checkpoint"] = place
        other.run()
        assert not other.exception
        assert other.query_params["checkpoint"] == str(mixtral_dir)


def field_with_address() -> None:
    import streamlit as st

    from ders_core.ui import kept

    chosen = kept.field(
        st.selectbox, "Layer", key="layer", start=0, of="/m", options=[0, 1, 2], address="layer"
    )
    st.markdown(f"layer {chosen}")


def test_a_field_is_set_by_the_address_and_sets_it(workspace: Workspace) -> None:
    first = AppTest.from_function(field_with_address).run()
    assert first.query_params["layer"] == "0"
    first.selectbox(key="layer").set_value(1).run()
    assert first.query_params["layer"] == "1"
    linked = AppTest.from_function(field_with_address)
    linked.query_params["layer"] = "2"
    assert words(linked.run()) == "layer 2"
    assert words(linked.selectbox(key="layer").set_value(0).run()) == "layer 0"
    wrong = AppTest.from_function(field_with_address)
    wrong.query_params["layer"] = "7"
    assert words(wrong.run()) == "layer 0"  # what a person chose last
    assert wrong.query_params["layer"] == "0"
