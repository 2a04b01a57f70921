"""What pages let a calculator compute; nothing here knows of pages."""

from __future__ import annotations

from functools import lru_cache

from ders_core.analysis import Verdict
from ders_core.analysis.pair_difference import PairDifference, pair_difference
from ders_core.analysis.summary import Summary, summarize
from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Progress
from ders_core.errors import CheckpointError, RecipeError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.budget import settled
from ders_core.pipeline.forecast import Forecast, forecast
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.recipe_files import check_files
from ders_core.pipeline.sampling import LARGER
from ders_core.recipe import Recipe


def foretell(place: str, version: str, recipe_yaml: str, *, progress: Progress) -> Forecast:
    """The forecast of a recipe for the checkpoint at a place, whose files are of that version.

    Raises DersError.
    """
    return _forecast(place, version, recipe_yaml, progress, whole=False)


def foretell_whole(place: str, version: str, recipe_yaml: str, *, progress: Progress) -> Forecast:
    """The same, with whole matrices where rows do not tell."""
    return _forecast(place, version, recipe_yaml, progress, whole=True)


def _forecast(
    place: str, version: str, recipe_yaml: str, progress: Progress, *, whole: bool
) -> Forecast:
    source, recipe = _opened(place, version), Recipe.from_yaml(recipe_yaml)
    plan = resolve(recipe, source)
    check_files(recipe, source)
    return forecast(plan, source, progress=progress, with_lossless=True, whole=whole)


def rules_of_budget(
    place: str, version: str, recipe_yaml: str, *, progress: Progress
) -> tuple[str, Forecast]:
    """The recipe, as YAML, with rules in the place of its budget, and what is foretold of these;
    otherwise as `foretell`."""
    source, recipe = _opened(place, version), Recipe.from_yaml(recipe_yaml)
    if recipe.budget is None:
        raise RecipeError(f"{recipe.name} has no budget that could become rules")
    found = settled(recipe, recipe.budget, source, progress=progress, with_lossless=True)
    told = found.told
    if told is None:  # the budget named the knob: no sample was needed
        told = forecast(found.plan, source, progress=progress, extent=LARGER, with_lossless=True)
    return found.recipe.to_yaml(), told


def first_look(place: str, version: str, verdict: Verdict | None, *, progress: Progress) -> Summary:
    """The summary of such a checkpoint. verdict: as `summarize` has it. Raises DersError."""
    progress(0, 0, "reading a sample")
    return summarize(_opened(place, version), verdict)


def in_memory(place: str, version: str, *, progress: Progress) -> tuple[int, int] | None:
    """As `ders_core.runtime.resident.resident_bytes` of such a checkpoint. Raises DersError."""
    from ders_core.runtime.resident import resident_bytes

    progress(0, 0, "reading how streams begin")
    return resident_bytes(_opened(place, version))


def pair_parts(
    place: str,
    version: str,
    layer: int,
    projection: str,
    first: int,
    second: int,
    *,
    progress: Progress,
) -> PairDifference:
    """Where two experts of such a checkpoint differ. Raises DersError."""
    group = _opened(place, version).group(layer, projection)
    return pair_difference(group, first, second, progress)


@lru_cache(maxsize=1)
def _opened(place: str, version: str) -> Checkpoint:
    source = open_checkpoint(place)
    if source.store.version != version:
        raise CheckpointError(f"{source.path} was changed since it was opened; open it again")
    return source
