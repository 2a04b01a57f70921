"""What pages say of bases and other tensors that a recipe codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.recipe_pages import apply_text
from support.studio_pages import on, opened, words

CODED = """version: 2
name: coded
rules: [{codec: quantized, bits: 4}]
base_codec: {codec: quantized, bits: 8}
others: {codec: quantized, bits: 8}
"""


@pytest.mark.parametrize("shared", [False, True])
def test_the_page_says_who_has_the_error_of_coded_bases(
    app: AppTest, mixtral_dir: Path, shared: bool
) -> None:
    opened(app, mixtral_dir)
    apply_text(app, CODED + ("base_error: shared\n" if shared else ""))
    assert ("all experts have its error" in words(app)) == shared
    assert ("what the coded base gives back" in words(app)) != shared


def test_a_checkpoint_does_not_say_that_coded_tensors_stay(app: AppTest, mixtral_dir: Path) -> None:
    opened(app, mixtral_dir)
    apply_text(app, CODED)
    on(app, "checkpoint")
    (label,) = (each.label for each in app.expander if each.label.startswith("Other tensors"))
    assert "unless the recipe codes them" in label
