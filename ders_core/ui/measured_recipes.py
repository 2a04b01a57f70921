"""What recipes were measured to cost, by the finished runs of the open checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.jobs import Job, Which
from ders_core.packed.manifest import Manifest
from ders_core.packed.names import MANIFEST
from ders_core.pipeline.quality import Quality, kl_text
from ders_core.recipe import Recipe
from ders_core.ui import runs, session

MOST_RUNS = 200
"""Of the newest, that are looked through."""


@dataclass(frozen=True)
class MeasuredRun:
    """A run whose quality was measured. name: the run's."""

    name: str
    quality: Quality

    @property
    def text(self) -> str:
        """The KL with its interval, on how many tokens."""
        kl = kl_text(self.quality.to_dict())
        return f"KL {kl} nats a token, measured on {self.quality.tokens} tokens by the run"


def measured_recipes(source: Checkpoint, recipes: Mapping[str, Recipe]) -> dict[str, MeasuredRun]:
    """By names of `recipes`: the newest measured run of the same recipe, whatever its name, that
    compressed the checkpoint as it is now."""
    known = {_nameless(recipe): name for name, recipe in recipes.items()}
    which = Which(("run",), ("done",), checkpoint=str(source.path))
    found: dict[str, MeasuredRun] = {}
    for job in session.job_store().page(which, most=MOST_RUNS):
        name = _name(job, known)
        result = runs.readable(job)
        if name is None or name in found or result is None or result.quality is None:
            continue
        if result.quality.kl is not None and _source_of(result.packed) == source.identity:
            found[name] = MeasuredRun(job.title, result.quality)
    return found


def _name(job: Job, known: Mapping[str, str]) -> str | None:
    """The known recipe that a run followed."""
    with suppress(DersError):  # of another version
        return known.get(_nameless(Recipe.from_yaml(str(job.spec["recipe"]))))
    return None


def _nameless(recipe: Recipe) -> str:
    """What a recipe says, whatever its name."""
    return recipe.model_copy(update={"name": "any"}).to_yaml()


def _source_of(packed: str) -> str | None:
    """The identity of what was packed; None if that was removed since."""
    try:
        file = Path(packed) / MANIFEST
        return _identity(packed, file.stat().st_mtime_ns)
    except (DersError, OSError):
        return None


@st.cache_data(show_spinner=False, max_entries=64)
def _identity(packed: str, stamp: int) -> str:
    return Manifest.read(Path(packed)).source.identity
