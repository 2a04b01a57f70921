"""Two experts of a layer: chosen by a click on their map or in two boxes, and how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from ders_core.analysis import Analysis, of_group
from ders_core.checkpoint import Checkpoint
from ders_core.later import pd
from ders_core.ui import kept
from ders_core.units import number_text, signed_text

FIRST, SECOND = "pair_first", "pair_second"
_SEEN = "pair_seen"


def expert_pair(
    analysis: Analysis, source: Checkpoint, layer: int, projection: str, pairs: pd.DataFrame
) -> tuple[int, int] | None:
    """Two boxes, and a sentence about the two experts. pairs: of all experts of the group. Returns
    the two; None unless there are two."""
    rows = of_group(analysis.experts, layer, projection)
    experts = [int(expert) for expert in rows["expert"]]
    if len(experts) < 2:
        return None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        first, second = (
            kept.field(
                st.selectbox,
                label,
                key=key,
                address=address,
                start=start,
                of=source.path,
                options=experts,
                format_func=lambda expert: f"E{expert}",
                width=140,
            )
            for key, label, address, start in (
                (FIRST, "Expert", "expert", experts[0]),
                (SECOND, "and expert", "with", experts[1]),
            )
        )
    st.markdown(_sentence(analysis, layer, projection, pairs, first, second))
    return (first, second) if first != second else None


def choose_clicked(event: Any, order: Sequence[int]) -> None:
    """Choose the pair of a cell of the map that was clicked; before the boxes are drawn. order: the
    experts of its rows. A joint of the tree beside the map is no pair."""
    points = event["selection"]["points"] if event else []
    if not points or st.session_state.get(_SEEN) == points[0]:
        return
    st.session_state[_SEEN] = points[0]
    row, name = points[0].get("y"), str(points[0].get("x"))
    if row in range(len(order)) and name[:1] == "E" and name[1:].isdecimal():
        st.session_state[FIRST], st.session_state[SECOND] = order[row], int(name[1:])


def _sentence(
    analysis: Analysis, layer: int, projection: str, pairs: pd.DataFrame, first: int, second: int
) -> str:
    if first == second:
        return "The same expert twice: choose another one, or click a cell of the map."
    row = pairs[(pairs["expert_i"] == first) & (pairs["expert_j"] == second)].iloc[0]
    norm = of_group(analysis.experts, layer, projection).set_index("expert")["norm_delta"]
    base = float(of_group(analysis.groups, layer, projection)["norm_base"].iloc[0]) or 1.0
    norms = (norm[expert] / base for expert in (first, second))
    return (
        f"**E{first} and E{second}**: 1 − cos = {number_text(row['one_minus_cos'])}; cosine of "
        f"their deltas {signed_text(row['cos_delta'])}; ‖Δ‖/‖W_base‖ "
        f"{' and '.join(number_text(norm) for norm in norms)}."
    )
