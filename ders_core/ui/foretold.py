"""Forecasts on pages: what a sample of rows tells of a recipe before a run."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.files.stamp import directory_version, stamp, version_of
from ders_core.pipeline.forecast import Forecast
from ders_core.pipeline.quality import GAIN, NOISE, PREDICTED_KL, Figure
from ders_core.recipe import Recipe
from ders_core.ui.calculation_bar import OfRecipe, with_bar
from ders_core.ui.calculations import foretell
from ders_core.ui.session import workspace

_KEY = "studio_forecasts"
_KEPT = 16

WHOLE_AT_ONCE = 1 << 18
"""Values of a matrix that is encoded whole while a page waits."""

_Version = tuple[str, ...]
"""Of how it is made, a checkpoint, a recipe and each file that it names."""


def foretold(
    source: Checkpoint, recipe: Recipe, how: OfRecipe[Forecast] = foretell
) -> Forecast | None:
    """The forecast of this recipe, if it was made in this session. how: the calculation that makes
    it."""
    told: dict[_Version, Forecast] = st.session_state.get(_KEY, {})
    version = _version(source, recipe, how)
    found = told.pop(version, None)
    if found is not None:  # what was asked for last is kept longest
        told[version] = found
    return found


def remember(source: Checkpoint, recipe: Recipe, told: Forecast) -> None:
    """Keep the forecast of a recipe, made in some other way, as if *Predict* had made it."""
    _keep(_version(source, recipe), told)


def foretold_at_once(
    source: Checkpoint, recipe: Recipe, how: OfRecipe[Forecast] = foretell
) -> Forecast | None:
    """The forecast of this recipe, made now unless it is known, with a bar meanwhile; None where it
    cannot be made, and then the page shows why. For recipes of a few groups."""
    known = foretold(source, recipe, how)
    if known is not None:
        return known
    place = st.empty()
    with place:
        told = _foretell(source, recipe, how)
    if told is not None:
        place.empty()
    return told


def _foretell(source: Checkpoint, recipe: Recipe, how: OfRecipe[Forecast]) -> Forecast | None:
    """The forecast, made now and kept; None where it cannot be made."""
    version = _version(source, recipe, how)
    told = with_bar(how, source, recipe, "encoding a sample")
    if told is not None:
        _keep(version, told)
    return told


def _keep(version: _Version, told: Forecast) -> None:
    """For this session; of earlier ones the latest."""
    earlier = st.session_state.get(_KEY, {})
    latest = list(earlier.items())[1 - _KEPT :]
    st.session_state[_KEY] = dict(latest) | {version: told}


def _version(source: Checkpoint, recipe: Recipe, how: OfRecipe[Forecast] = foretell) -> _Version:
    files = map(_file_version, recipe.files)
    return how.__name__, source.store.version, recipe.to_yaml(), *files


def _file_version(path: Path) -> str:
    """Changes when a file that a recipe names, or one of such a directory, is written again. Empty
    if none is there that may be read here."""
    try:
        allowed = workspace().check_allowed(path)
        if allowed.is_dir():
            return directory_version(allowed)
        return version_of({allowed.name: stamp(allowed)})
    except (DersError, OSError):
        return ""


def forecast_cells(
    told: Forecast, recipe: Recipe, *, in_table: bool, sample: str = "rows and experts"
) -> None:
    """Predicted KL; where the calibration has no gradients, or there is none, gain and noise; where
    a sample does not tell these, whether a table of the page does (in_table). recipe: that was
    foretold. sample: what it is made of."""
    outlook = told.outlook
    if outlook.predicted_kl is not None:
        told_cell(PREDICTED_KL, outlook.predicted_kl, f"From a sample of {sample}.")
        return
    if outlook.gain is None:
        if in_table:
            where = "in the table"
            how = "The table has them for each group of which they are known."
        elif any(entry.gain is None for entry in told.entries):
            where = "not known from a sample"
            how = (
                "An analysis estimates them, those of a low rank from its spectra as far as they "
                "go. Where bits choose the rank, a run measures them."
            )
        else:  # nothing is replaced
            return
        if recipe.base.files:
            why = "A sample does not tell those of deltas from a base that is read from a file."
        else:
            why = "A sample of rows does not tell those of a low rank."
        st.caption(f"Gain and noise: {where}", help=f"{why} {how}", width="content")
        return
    how = f"From a sample of {sample}, the mean over the replaced groups."
    told_cell(GAIN, outlook.gain, how)
    told_cell(NOISE, outlook.noise, how)


def told_cell(figure: Figure, value: float | None, how: str) -> None:
    """A figure of a forecast. how: a sentence that its help ends with."""
    st.metric(
        figure.short[0].upper() + figure.short[1:],
        "unknown" if value is None else figure.text(value),
        help=f"{figure.help} {how}",
        width="content",
    )


def forecast_button(
    source: Checkpoint,
    recipe: Recipe,
    key: str = "predict",
    how: OfRecipe[Forecast] = foretell,
    more: str = "",
) -> None:
    """Encodes a sample, with a bar meanwhile, and draws the page anew. more: a sentence that the
    button's help ends with."""
    if not st.button(
        "Predict",
        key=key,
        icon=":material/query_stats:",
        help="Encodes a sample of every group as the recipe says: bytes, gain and noise, and with "
        f"a calibration that has gradients the KL. Nothing is written. {more}".rstrip(),
    ):
        return
    if _foretell(source, recipe, how) is not None:
        st.rerun()
