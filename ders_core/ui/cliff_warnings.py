"""The Recipe page's warnings of cliffs: where a little less costs much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import streamlit as st

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.errors import JobError
from ders_core.jobs import Which
from ders_core.jobs.kinds.series import SeriesResult
from ders_core.later import pd
from ders_core.pipeline.plan import Plan
from ders_core.pipeline.quality import GAIN
from ders_core.tune.cliffs import Cliff
from ders_core.ui import session
from ders_core.ui.plain import plain
from ders_core.ui.predicted_size import PredictedSize
from ders_core.units import bytes_text

LOW_GAIN = 0.5
"""Below it more of a delta is missing than is given back."""

SHARED_EXPERT: Mapping[str, Callable[[float], bool]] = {
    "quantized": lambda bits: bits < 4,
    "random drop": lambda rate: rate >= 0.9,
}
"""By the menu's labels, strengths at which the paper's extended form is near its cliff: Coder-MoE
has 63.4 of 64.6 points with 4 bits and 6.0 with 2; 62.2 when 0.8 of the entries are dropped, 58.5
at 0.9 and 0.0 at 0.99 (arXiv 2503.01359)."""


def cliff_warnings(rows: pd.DataFrame, plan: Plan, size: PredictedSize, source: Checkpoint) -> None:
    """A box for each cliff that the recipe is near. rows: of `recipe_table.table`."""
    words = [low_gain(rows), measured_cliff(source, size)]
    if plan.recipe.extended:
        words.append(shared_expert(rows, source.groups()))
    for sentence in filter(None, words):
        st.warning(plain(sentence), icon=":material/warning:")


def low_gain(rows: pd.DataFrame) -> str:
    """Where little of the deltas is given back; "" elsewhere."""
    low = int((rows[GAIN.key].astype(float) < LOW_GAIN).sum())
    if not low:
        return ""
    return (
        f"Near a cliff: in {low} of {len(rows)} groups less than half of the deltas is given back. "
        "What is missing points the same way in every layer, and KL grows with the square of the "
        "sum. Make the codec keep more there, or take a codec that is unbiased."
    )


def shared_expert(rows: pd.DataFrame, groups: Sequence[ExpertGroup]) -> str:
    """Where an always-on expert is coded as the others, with few bits, or drops most entries; ""
    elsewhere. groups: of the checkpoint."""
    shared = {group.key for group in groups if group.with_shared() is not group}
    keys, strengths = zip(rows["layer"], rows["projection"], strict=True), rows["strength"]
    near = [
        label
        for key, label, strength in zip(keys, rows["codec"], strengths.astype(float), strict=True)
        if key in shared and label in SHARED_EXPERT and SHARED_EXPERT[label](strength)
    ]
    if not near:
        return ""
    return (
        f"Near a cliff: in {len(near)} of {len(shared)} groups that have a shared expert, which "
        "every token passes, it is coded as roughly as the others. The paper's Coder-MoE keeps "
        "63.4 of 64.6 points at 4 bits and 6.0 at 2; 58.5 when 0.9 of the entries are dropped and "
        "none at 0.99. Measure it, or switch Shared expert too off."
    )


def measured_cliff(source: Checkpoint, size: PredictedSize) -> str:
    """The nearest cliff above the recipe's size that a series of this checkpoint measured; ""
    without one."""
    if size.nbytes is None:
        return ""
    above = [cliff for cliff in _known_cliffs(source) if size.nbytes < cliff.large]
    if not above:
        return ""
    cliff = min(above, key=lambda each: each.large)
    return (
        f"{'Below' if size.nbytes < cliff.small else 'Near'} a cliff: a series of tuned recipes "
        f"measured that {cliff.sentence}. This recipe leaves {size.with_bound}. Stay at "
        f"{bytes_text(cliff.large)} or above, or measure it on the Runs page."
    )


def _known_cliffs(source: Checkpoint) -> tuple[Cliff, ...]:
    """Of the newest series of this checkpoint that is done. The directory may have held another
    checkpoint then, of other weight files."""
    job = session.job_store().newest(Which(("series",), ("done",), checkpoint=str(source.path)))
    try:
        result = None if job is None else SeriesResult.of(job)
    except JobError:  # written by another version
        return ()
    if result is None or result.bytes_before != source.bytes_total:
        return ()
    return result.cliffs
