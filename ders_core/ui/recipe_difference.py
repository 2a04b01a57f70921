"""Part of the Recipe page: the current recipe against a saved one, a preset, or that of a run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.jobs import Which
from ders_core.recipe import Recipe, presets
from ders_core.ui import kept, runs, session
from ders_core.ui.plain import plain

MOST_RUNS = 50
"""Of the newest, that are offered."""


def difference(recipe: Recipe, source: Checkpoint, saved: Mapping[str, Recipe]) -> None:
    """A box of recipes, and the lines that differ. It starts with the saved one of the same name,
    or else the preset. saved: by name."""
    others = offered_recipes(source, saved)
    of_its_name = (f"saved: {recipe.name}", f"preset: {recipe.name}")
    chosen = kept.field(
        st.selectbox,
        "Compare with",
        key="recipe_difference",
        start=next((label for label in of_its_name if label in others), None),
        draft_of=recipe.name,
        options=list(others),
        index=None,
        format_func=plain,
        placeholder="a saved recipe, a preset, or a run's",
        width=420,
    )
    if chosen is None:
        st.caption("No recipe of this name was saved. Choose one to see what differs.")
        return
    before, now = others[chosen]().splitlines(), recipe.to_yaml().splitlines()
    text = "\n".join(difflib.unified_diff(before, now, chosen, "now", lineterm=""))
    st.code(text or "No difference.", language="diff" if text else None)


def offered_recipes(
    source: Checkpoint, saved: Mapping[str, Recipe]
) -> dict[str, Callable[[], str]]:
    """What gives the YAML of saved recipes, of runs on the open checkpoint, the newest first, and
    of presets; by what the box calls them."""
    others: dict[str, Callable[[], str]] = {}
    for name, known in saved.items():
        others[f"saved: {name}"] = known.to_yaml
    which = Which(("run",), checkpoint=str(source.path))
    jobs = session.job_store().page(which, most=MOST_RUNS)
    for job, name in zip(jobs, runs.names(jobs), strict=True):
        others[f"run: {name}"] = partial(str, job.spec.get("recipe", ""))
    for name, preset in presets().items():
        others[f"preset: {name}"] = preset.to_yaml
    return others
