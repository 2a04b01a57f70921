"""What tuning foretells: size against KL, and which layers get how many bits."""

from __future__ import annotations

from math import log2
from textwrap import wrap

import plotly.graph_objects as go

from ders_core.figures.kl_axis import LEAST_KL, kl_axis
from ders_core.figures.style import (
    ACCENT,
    PERCENT,
    QUIET,
    SEQUENTIAL,
    TUNED,
    UNIFORM,
    finish,
    label_of,
    percent,
)
from ders_core.later import np, pd
from ders_core.units import bytes_text, number_text

LEAST_BITS, MOST_BITS = 1 / 8, 8.0
"""Ends of the colours, the same for every size: figures beyond have the colour of the end."""

WIDTH = 40
"""Of a hover text, in characters."""

MEASURED = {
    "run": ("measured run", "#56b4e9", "circle"),
    "tuned": ("measured, tuned", TUNED, "circle-open"),
    "uniform": ("measured, uniform recipe", UNIFORM, "square-open"),
}
"""Of each role: its name, colour and sign."""


def frontier(
    curve: pd.DataFrame, knob: pd.DataFrame, measured: pd.DataFrame, chosen: tuple[float, float]
) -> go.Figure:
    """Size against KL, on a logarithmic scale; files that lose nothing do not widen the plot.

    curve, knob: `share` of the original and predicted `kl`, of tuned recipes and of one knob for
    all. measured: of each recipe its `name`, `role`, `share`, `kl`, and the interval from `low` to
    `high`, NaN without one. chosen: share and predicted KL of the mark.
    """
    figure = go.Figure()
    for rows, name, line in (
        (knob, "predicted, one knob for all", {"color": QUIET, "dash": "dot"}),
        (curve, "predicted, tuned", {"color": TUNED, "width": 2.5}),
    ):
        lossy = rows[rows["kl"] > LEAST_KL]
        figure.add_scatter(
            x=percent(lossy["share"]),
            y=lossy["kl"],
            mode="lines",
            name=name,
            line=line,
            hovertemplate="%{fullData.name}<br>%{x:.1f} % of original<br>"
            "predicted KL %{y:.3g} nats a token<extra></extra>",
        )
    for role, rows in measured[measured["kl"] > LEAST_KL].groupby("role", sort=False):
        name, colour, sign = MEASURED[str(role)]
        figure.add_scatter(
            x=percent(rows["share"]),
            y=rows["kl"],
            mode="markers",
            name=name,
            marker={
                "size": 11,
                "color": colour,
                "symbol": sign,
                "line": {"width": 2, "color": colour},
            },
            error_y={
                "array": rows["high"] - rows["kl"],
                "arrayminus": rows["kl"] - rows["low"],
            },
            text=[label_of(each) for each in rows["name"]],
            hovertemplate="%{text}<br>%{x:.1f} % of original<br>measured KL %{y:.3g} nats a token"
            "<extra></extra>",
        )
    share, kl = chosen
    figure.add_scatter(
        x=[100 * share] if kl > LEAST_KL else [],
        y=[kl] if kl > LEAST_KL else [],
        mode="markers",
        name="chosen, predicted",
        marker={"size": 13, "color": ACCENT, "symbol": "diamond"},
        hovertemplate="chosen: %{x:.1f} % of original<br>predicted KL %{y:.3g} nats a token"
        "<extra></extra>",
    )
    figure.update_xaxes(title_text="size, share of original", **PERCENT)
    figure.update_yaxes(title_text="KL, nats a token", **kl_axis(figure))
    return finish(figure, "Size against KL", height=380)


def bits_map(groups: pd.DataFrame) -> go.Figure:
    """Layers by projections; colour is the bits that a weight of an expert takes, base included.

    groups: `layer`, `projection`, `bits`, `deltas` and `base` (codecs), `bytes`, and `cost`, what
    its errors alone are predicted to cost in nats a token.
    """
    order = groups["projection"].drop_duplicates().tolist()
    grid = groups.pivot(index="layer", columns="projection", values="bits")[order]
    hover = groups.assign(hover=groups.apply(_hover, axis=1)).pivot(
        index="layer", columns="projection", values="hover"
    )[order]
    ticks = [2.0**power for power in range(int(log2(LEAST_BITS)), int(log2(MOST_BITS)) + 1)]
    figure = go.Figure(
        go.Heatmap(
            z=np.log2(np.clip(grid.to_numpy(), LEAST_BITS, MOST_BITS)),
            zmin=log2(LEAST_BITS),
            zmax=log2(MOST_BITS),
            x=list(grid.columns),
            y=[f"layer {layer}" for layer in grid.index],
            text=[
                ["" if np.isnan(v) else number_text(v, 2) for v in row] for row in grid.to_numpy()
            ],
            texttemplate="%{text}",
            customdata=hover.to_numpy(),
            colorscale=SEQUENTIAL,
            colorbar={
                "title": {"text": "bits"},
                "thickness": 12,
                "tickvals": [log2(tick) for tick in ticks],
                "ticktext": [f"{tick:g}" for tick in ticks],
            },
            hovertemplate="%{y}, %{x}<br>%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
        )
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    height = max(380, 120 + 26 * len(grid.index))
    return finish(figure, "Bits a weight of an expert, base included", height=height)


def _hover(group: pd.Series) -> str:
    lines = [
        *wrap(f"deltas: {group['deltas']}", WIDTH),
        *wrap(f"base: {group['base']}", WIDTH),
        f"{number_text(group['bits'])} bits a weight, {bytes_text(group['bytes'])}",
        f"predicted cost alone: {number_text(group['cost'])} nats a token",
    ]
    return "<br>".join(map(label_of, lines))
