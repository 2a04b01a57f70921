"""What a page lets a calculator compute about a recipe, with a bar meanwhile."""

from __future__ import annotations

from typing import Protocol, TypeVar

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Progress
from ders_core.errors import DersError
from ders_core.recipe import Recipe
from ders_core.ui.calculator import calculate
from ders_core.ui.plain import plain, show_error
from ders_core.ui.recipe_files import check_places

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class OfRecipe(Protocol[R_co]):
    """A calculation of `ders_core.ui.calculations` about a checkpoint and a recipe."""

    __name__: str

    def __call__(
        self, place: str, version: str, recipe_yaml: str, *, progress: Progress
    ) -> R_co: ...


def with_bar(calculation: OfRecipe[R], source: Checkpoint, recipe: Recipe, words: str) -> R | None:
    """What is computed; None where it cannot be, and then the page shows why. words: at first."""
    bar = st.progress(0.0, words)

    def show(done: int, total: int, words: str) -> None:
        bar.progress(done / total if total else 0.0, plain(words))

    try:
        check_places(recipe)  # one that was saved, or comes from a file, may name any
        version, text = source.store.version, recipe.to_yaml()
        return calculate(calculation, source.place, version, text, progress=show)
    except DersError as error:
        bar.empty()
        show_error(error)
        return None
