"""Errors of several runs over depth."""

from __future__ import annotations

import plotly.graph_objects as go

from ders_core.figures.style import expert_colour, expert_dash, finish, label_of
from ders_core.later import pd
from ders_core.pipeline.quality import WEIGHT_ERROR


def errors_over_depth(errors: pd.DataFrame) -> go.Figure:
    """‖Ŵ−W‖/‖W‖ of each layer, the mean over its projections, one line a run.

    errors: columns run, layer, projection, rel_error_weight.
    """
    figure = go.Figure()
    for number, (run, rows) in enumerate(errors.groupby("run", sort=False)):
        means = rows.groupby("layer")[WEIGHT_ERROR.key].mean()
        figure.add_scatter(
            x=means.index,
            y=means,
            name=label_of(str(run)),
            mode="lines+markers",
            cliponaxis=False,
            line={"color": expert_colour(number), "dash": expert_dash(number)},
            hovertemplate="%{fullData.name}<br>layer %{x}<br>"
            + WEIGHT_ERROR.short
            + " = %{y:.3g}<extra></extra>",
        )
    layers = errors["layer"]
    figure.update_xaxes(title_text="layer", range=[layers.min() - 0.5, layers.max() + 0.5])
    figure.update_xaxes(dtick=max(1, layers.nunique() // 12))
    figure.update_yaxes(title_text=WEIGHT_ERROR.label, rangemode="tozero")
    figure.update_layout(showlegend=True)
    return finish(figure, "Error of the weights over depth", height=360)
