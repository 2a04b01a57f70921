"""A slider of the file's size, and what follows it: figures, the frontier, a map of bits."""

from __future__ import annotations

import streamlit as st

from ders_core import figures
from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.later import pd
from ders_core.pipeline.quality import PREDICTED_KL
from ders_core.recipe import Recipe
from ders_core.tune.allocate import Allocation
from ders_core.tune.scores import Scores
from ders_core.tune.written import as_recipe
from ders_core.ui import kept, session
from ders_core.ui.number_columns import number_column
from ders_core.ui.plain import show_error
from ders_core.ui.plots import live_plot
from ders_core.ui.tune.bound_fields import checked_bound, typed_bound
from ders_core.ui.tune.clicked import load_clicked
from ders_core.ui.tune.known import Known
from ders_core.ui.tune.measuring_form import measuring_popover
from ders_core.ui.tune.solutions import STEP, Outlook, allocation, outlook, smallest
from ders_core.ui.tune.tables import groups_table, units_table
from ders_core.ui.tune.wish import Wish, wish_fields
from ders_core.units import bytes_text, share_text

SIZE = "tune_size"
"""Key of the slider."""

COST = (
    "What the matrix's own errors cost, in millionths of a nat a token, as predicted. What meets "
    "errors of others, such as choices of experts that tip, is in the total only."
)


@st.fragment
def explorer(source: Checkpoint, known: Known, measured: pd.DataFrame) -> None:
    """Solves again at each move; the rest of the page stays. measured: as of
    `ders_core.ui.tune.measured`."""
    scores = known.scores
    assert scores is not None, "it was scored with"
    top, body, choices = st.container(), st.container(), st.container(horizontal=True)
    try:
        with choices:
            wish = _wish(source, scores)
        sizes = outlook(known.version, wish, scores)
        with top:
            percent = _slider(source, _start(source, known, wish, sizes), sizes)
        found = allocation(known.version, wish, percent, scores)
    except DersError as error:
        with top:
            show_error(error)
        return
    with body:
        _totals(found, scores, sizes)
        _buttons(source, known, found, percent, wish)
        _pictures(found, scores, sizes, measured)


def _pictures(found: Allocation, scores: Scores, sizes: Outlook, measured: pd.DataFrame) -> None:
    units = units_table(found, scores)
    wide, narrow = st.columns([3, 2])
    with wide:
        share = found.nbytes / scores.bytes_total
        event = live_plot(
            figures.frontier(sizes.curve, sizes.knob, measured, (share, found.predicted_kl)),
            "tune_frontier",
            _points(sizes, measured),
            alt="Predicted KL over size, of tuned recipes and of one knob, with what was measured",
            selectable=True,
        )
        load_clicked(event, measured)
    with narrow:
        groups = groups_table(units, scores)
        live_plot(
            figures.bits_map(groups),
            "tune_map",
            groups,
            alt="Layers by projections; colour shows how many bits a weight of an expert takes",
        )
    with st.expander("What each matrix gets"):
        _table(units)
        st.caption(
            "By these scores, the sum of losses near this choice is at most "
            f"{share_text(found.gap)} above the least of any choice within this size. Predicted "
            "KL is not the sum of this table, since errors meet."
        )


def _wish(source: Checkpoint, scores: Scores) -> Wish:
    layers = {each.unit.layer for each in scores.units if each.unit.layer is not None}
    return wish_fields(source, sorted(layer for layer in layers if layer >= 0))


def _slider(source: Checkpoint, start: float, sizes: Outlook) -> float:
    return kept.field(
        st.slider,
        "Size of the file, % of original",
        key=SIZE,
        start=start,
        of=source.path,
        min_value=sizes.least,
        max_value=sizes.most,
        step=STEP,
        format="%.1f %%",
        help="From the smallest file that there is to one that loses nothing.",
    )


def _start(source: Checkpoint, known: Known, wish: Wish, sizes: Outlook) -> float:
    """Of the slider: what the form asks for in percent of the original, its budget where that is a
    size of the file, or the least size within its KL. Not asked for once a person moved it."""
    if kept.value(SIZE, None, source.path) is not None:
        return sizes.start
    scores = known.scores
    assert scores is not None, "it was scored with"
    try:
        bound = checked_bound(typed_bound())
        if bound.measure == "kl":
            percent = smallest(known.version, wish, bound, scores) or sizes.start
        elif bound.measure == "share":
            percent = round(100 * bound.most, 1)
        elif bound.measure == "bytes":
            percent = round(100 * bound.most / scores.bytes_total, 1)
        else:
            return sizes.start
    except DersError:
        return sizes.start
    return min(max(percent, sizes.least), sizes.most)


def _totals(found: Allocation, scores: Scores, sizes: Outlook) -> None:
    share = found.nbytes / scores.bytes_total
    knob = sizes.knob_within(share)
    cells = st.container(horizontal=True, gap="medium")
    cells.metric(
        "Predicted size",
        f"{bytes_text(found.nbytes)} ({share_text(share)})",
        help=f"Of the packed weight files; the original has {bytes_text(scores.bytes_total)}. "
        "Coded streams are foretold from samples: *Predict* on the Recipe page takes larger ones.",
        width="content",
    )
    cells.metric(
        "Predicted KL, nats a token",
        PREDICTED_KL.text(found.predicted_kl),
        help=PREDICTED_KL.help,
        width="content",
    )
    cells.metric(
        "Of one knob, no larger",
        PREDICTED_KL.text(knob) if knob is not None else "–",
        help="Predicted KL, in nats a token, of a recipe with a budget that is no larger: it "
        "rounds every matrix by one rule, mixes no forms, and keeps no layers.",
        width="content",
    )
    cells.metric(
        "Read for a token",
        bytes_text(found.read),
        help="Bytes of weights on average: of experts as many as a token is given.",
        width="content",
    )


def _points(sizes: Outlook, measured: pd.DataFrame) -> pd.DataFrame:
    """All that the frontier shows, for the CSV."""
    parts = [
        sizes.curve.assign(name="predicted, tuned"),
        sizes.knob.assign(name="predicted, one knob for all"),
        measured.drop(columns="recipe").assign(name="measured: " + measured["name"].astype(str)),
    ]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def _buttons(
    source: Checkpoint, known: Known, found: Allocation, percent: float, wish: Wish
) -> None:
    def recipe() -> Recipe:
        name = f"tuned-{percent:.1f}"
        return as_recipe(found, source, known.calibration.path, name=name)

    with st.container(horizontal=True):
        if st.button(
            "Load on the Recipe page",
            key="tune_load",
            type="primary",
            icon=":material/edit:",
            help="Makes it the current recipe. Of coded streams that page shows an upper bound, "
            "which may be above the original, until *Predict* samples them.",
        ):
            try:
                session.set_recipe(recipe())
            except DersError as error:
                show_error(error)
            else:
                st.switch_page("pages/recipe.py")
        st.download_button(
            "YAML",
            data=lambda: recipe().to_yaml(),
            file_name=f"tuned-{percent:.1f}.yaml",
            mime="application/yaml",
            icon=":material/download:",
            key="tune_download",
            on_click="ignore",
        )
        measuring_popover(source, known, recipe(), percent, wish)


def _table(units: pd.DataFrame) -> None:
    shown = units[["matrix", "codec", "bits", "bytes", "cost"]].assign(
        bytes=units["bytes"] / 1e6, cost=units["cost"] * 1e6
    )
    st.dataframe(
        shown,
        hide_index=True,
        column_config={
            "codec": st.column_config.TextColumn(width="medium"),
            "bits": number_column("bits a weight", shown["bits"]),
            "bytes": number_column("MB", shown["bytes"], "%.2g"),
            "cost": number_column("predicted cost, 10⁻⁶ nats", shown["cost"], "%.2g", help=COST),
        },
    )
