"""What was measured of a packed checkpoint: each text alone, and the tokens that changed most."""

from __future__ import annotations

import streamlit as st

from ders_core.later import pd
from ders_core.pipeline.quality import (
    KL,
    KL_HIGH,
    KL_LOW,
    KL_P95,
    KL_P99,
    PERPLEXITY,
    PERPLEXITY_CHANGE,
    ROUTING_AGREEMENT,
    TOKENS,
    TOP1_AGREEMENT,
    Quality,
)
from ders_core.ui.number_columns import figure_column
from ders_core.units import visible

FIGURES = (
    *(KL, KL_LOW, KL_HIGH, KL_P95, KL_P99, PERPLEXITY, PERPLEXITY_CHANGE),
    *(TOP1_AGREEMENT, ROUTING_AGREEMENT, TOKENS),
)
ALL = "all together"


def texts_table(quality: Quality) -> None:
    """A row for each text with a name and one for all; nothing without names."""
    if not quality.domains:
        return
    rows = [
        {"text": name}
        | {
            figure.key: None if value is None else figure.scale * value
            for figure in FIGURES
            for value in [getattr(measured, figure.key)]
        }
        for name, measured in [
            *((domain.name, domain) for domain in quality.domains),
            (ALL, quality),
        ]
    ]
    shown = pd.DataFrame(rows).dropna(axis="columns", how="all")
    st.dataframe(
        shown,
        hide_index=True,
        column_config={
            "text": st.column_config.TextColumn("text", pinned=True),
            **{figure.key: figure_column(figure, shown) for figure in FIGURES},
        },
    )


def worst_tokens(quality: Quality, key: str) -> None:
    """The tokens with the largest KL, folded away; nothing if there are none."""
    if not quality.worst:
        return
    with st.expander("Tokens that changed most", key=key):
        rows = [
            {
                KL.key: each.kl,
                "domain": visible(each.domain) or None,
                **{
                    name: visible(getattr(each, name))
                    for name in ("before", "came", "original", "model")
                },
            }
            for each in quality.worst
        ]
        shown = pd.DataFrame(rows).dropna(axis="columns", how="all")
        st.dataframe(
            shown,
            hide_index=True,
            column_config={
                KL.key: figure_column(KL, shown),
                "domain": st.column_config.TextColumn("text"),
                "before": st.column_config.TextColumn("before it", width="large"),
                "came": st.column_config.TextColumn("token that came"),
                "original": st.column_config.TextColumn("the original said"),
                "model": st.column_config.TextColumn("this one says"),
            },
        )
