"""Several runs side by side: errors over depth, and the KL on each text."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from ders_core.figures.kl_axis import LEAST_KL, kl_axis
from ders_core.figures.style import expert_colour, expert_dash, finish, label_of, run_symbol
from ders_core.later import pd
from ders_core.pipeline.quality import KL, WEIGHT_ERROR


def errors_over_depth(errors: pd.DataFrame, order: Sequence[str]) -> go.Figure:
    """‖Ŵ−W‖/‖W‖ of each layer, the mean over its projections, one line a run.

    errors: columns run, layer, projection, rel_error_weight. order: all runs that are compared; a
    run looks the same in each plot with that order.
    """
    figure = go.Figure()
    for run, rows in errors.groupby("run", sort=False):
        number = order.index(str(run))
        means = rows.groupby("layer")[WEIGHT_ERROR.key].mean()
        figure.add_scatter(
            x=means.index,
            y=means,
            name=label_of(str(run)),
            mode="lines+markers",
            cliponaxis=False,
            line={"color": expert_colour(number), "dash": expert_dash(number)},
            marker={"symbol": run_symbol(number)},
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


def kl_on_texts(measured: pd.DataFrame, order: Sequence[str]) -> go.Figure:
    """KL of each run on each text that was measured apart, with its interval.

    measured: columns run, text, kl, kl_low and kl_high, the last two NaN where there is no
    interval. What loses nothing is not drawn: the axis is logarithmic. order: as of
    `errors_over_depth`.
    """
    figure = go.Figure()
    for run, lossy in measured[measured["kl"] > LEAST_KL].groupby("run", sort=False):
        number = order.index(str(run))
        figure.add_scatter(
            x=lossy["text"].map(label_of),
            y=lossy["kl"],
            name=label_of(str(run)),
            mode="markers",
            marker={
                "size": 10,
                "color": expert_colour(number),
                "symbol": run_symbol(number),
            },
            error_y={
                "array": lossy["kl_high"] - lossy["kl"],
                "arrayminus": lossy["kl"] - lossy["kl_low"],
            },
            hovertemplate="%{fullData.name}<br>%{x}<br>KL %{y:.3g} nats a token<extra></extra>",
        )
    figure.update_layout(scattermode="group", scattergap=0.6, showlegend=True)
    figure.update_yaxes(title_text=KL.label, **kl_axis(figure))
    return finish(figure, "KL on each text", height=360)
