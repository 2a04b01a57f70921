"""The model at a glance, the experts of a group, where a matrix differs."""

from __future__ import annotations

from typing import Any, Literal

import plotly.graph_objects as go

from ders_core.analysis import Analysis, of_group, rank_for_energy
from ders_core.figures.clickable import clickable
from ders_core.figures.style import (
    ACCENT,
    LEAST_SPAN,
    MEAN,
    PERCENT,
    PROJECTION_COLOURS,
    SEQUENTIAL,
    expert_colour,
    finish,
    label_step,
    logs,
    percent,
    power_ticks,
    widened,
)
from ders_core.later import np, pd

Metric = Literal["one_minus_cos", "norm_ratio"]
"""What colours the map of a model."""
CELL, AROUND, MOST_HEIGHT = 26.0, 120, 900
"""Of a map of the model, px: a layer, all that is above and below, and the whole."""
PARTED = 12.0
"""Px of a cell from which on wide gaps leave enough of it, and a number has room in it."""
MOST_DOTTED = 48
"""Layers whose dots on a line can be told apart."""


def cell_height(layers: int) -> float:
    """Height of a layer's cell in a map of the model, px."""
    return min(CELL, (MOST_HEIGHT - AROUND) / max(layers, 1))


def map_height(layers: int) -> int:
    """Height of such a map, px: of many layers it still fits a window."""
    return max(260, round(AROUND + cell_height(layers) * layers))


def _grid(analysis: Analysis, values: pd.Series) -> pd.DataFrame:
    """Layers down, projections across, in the order of the tables; NaN where a layer lacks one."""
    table = analysis.groups[["layer", "projection"]].assign(value=values)
    order = table["projection"].drop_duplicates().tolist()
    grid: pd.DataFrame = table.pivot(index="layer", columns="projection", values="value")[order]
    return grid


_OF_GROUPS: dict[Metric, str] = {
    "one_minus_cos": "mean_one_minus_cos",
    "norm_ratio": "norm_ratio",
}
"""The column of groups that holds what colours the map."""


def model_map(
    analysis: Analysis,
    metric: Metric = "one_minus_cos",
    beside: Analysis | None = None,
    chosen: tuple[int, str] | None = None,
) -> go.Figure:
    """Layers by projections; colour is log10 of the mean 1 − cos, or ‖Δ‖/‖W_base‖. beside: an
    analysis whose values have a place on the scale of colours too. chosen: layer and projection of
    the cell that has a frame."""
    column = _OF_GROUPS[metric]
    raw = _grid(analysis, analysis.groups[column])
    shown = raw.to_numpy()
    every = np.concatenate(
        [one.groups[column].to_numpy() for one in (analysis, beside) if one is not None]
    )
    if metric == "one_minus_cos":
        shown, every = logs(shown), logs(every)
        title, label = "Mean 1 − cos of experts", "1 − cos"
        low, high = widened(float(np.nanmin(every)), float(np.nanmax(every)))
        bar: dict[str, list[Any]] = power_ticks(low, high)
    else:
        title, label, bar = "‖Δ‖ / ‖W_base‖", "‖Δ‖/‖W‖", {}
        largest = float(np.nanmax(every))
        low, high = widened(float(np.nanmin(every)), largest, LEAST_SPAN * (largest or 1.0))
    cell = cell_height(len(raw.index))
    figure = go.Figure(
        go.Heatmap(
            z=shown,
            zmin=low,
            zmax=high,
            x=list(raw.columns),
            y=[f"layer {layer}" for layer in raw.index],
            customdata=raw.to_numpy(),
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": label}, "thickness": 12, **bar},
            hovertemplate="%{y}, %{x}<br>" + label + " = %{customdata:.3g}<extra></extra>",
            xgap=2,
            ygap=2 if cell >= PARTED else 1,
        )
    )
    figure.update_xaxes(showgrid=False)
    _name_layers(figure, len(raw.index))
    clickable(figure, size=min(18.0, 0.7 * cell))
    if chosen is not None:
        layer, projection = chosen
        _frame(figure, list(raw.columns).index(projection), list(raw.index).index(layer))
    return finish(figure, title, height=map_height(len(raw.index)))


def _name_layers(figure: go.Figure, layers: int) -> None:
    """Rows of a map from the top, with as many names as can be read."""
    figure.update_yaxes(
        autorange="reversed", type="category", showgrid=False, dtick=label_step(layers)
    )


def _frame(figure: go.Figure, column: int, row: int) -> None:
    """Around a cell of a map whose axes count cells or name them."""
    ends = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
    figure.add_shape(type="rect", line={"color": ACCENT, "width": 3}, **ends)


def norm_bars(
    analysis: Analysis,
    layer: int,
    projection: str,
    chosen: tuple[float, ...] | None = None,
) -> go.Figure:
    """‖Δ‖ of each expert as a share of ‖W_base‖. chosen: how often each is, as shares of all
    choices of the layer; drawn on an axis of their own."""
    rows = of_group(analysis.experts, layer, projection)
    base = float(of_group(analysis.groups, layer, projection)["norm_base"].iloc[0]) or 1.0
    names = [f"E{expert}" for expert in rows["expert"]]
    figure = go.Figure(
        go.Bar(
            x=names,
            y=rows["norm_delta"] / base,
            name="‖Δ‖",
            showlegend=False,
            marker_color=[expert_colour(int(expert)) for expert in rows["expert"]],
            hovertemplate="%{x}<br>‖Δ‖/‖W_base‖ = %{y:.3g}<extra></extra>",
        )
    )
    figure.update_xaxes(dtick=label_step(len(names)))
    figure.update_yaxes(title_text="‖Δ‖ / ‖W_base‖", rangemode="tozero")
    if chosen is not None:
        figure.add_scatter(
            x=names,
            y=percent(chosen),
            yaxis="y2",
            name="chosen",
            showlegend=False,
            mode="markers",
            marker={"symbol": "diamond", "size": 11, "color": MEAN, "line_width": 1},
            hovertemplate="%{x}<br>%{y:.1f} % of choices<extra></extra>",
        )
        figure.layout.yaxis2 = {
            "overlaying": "y",
            "side": "right",
            "rangemode": "tozero",
            **PERCENT,
            "tickformat": ".3~g",
            "showgrid": False,
            "title": {"text": "◆ share of choices"},
        }
    return finish(figure, f"Norm of each delta, layer {layer}, {projection}", height=280)


def norm_ratio_over_depth(analysis: Analysis) -> go.Figure:
    """Mean ‖Δ‖/‖W_base‖ of each layer, one line a projection."""
    figure = go.Figure()
    for projection, rows in analysis.groups.groupby("projection", sort=False):
        figure.add_scatter(
            x=rows["layer"],
            y=rows["norm_ratio"],
            name=str(projection),
            mode="lines+markers" if len(rows) <= MOST_DOTTED else "lines",
            line_color=PROJECTION_COLOURS.get(str(projection)),
            hovertemplate="%{fullData.name}, layer %{x}<br>‖Δ‖/‖W_base‖ = %{y:.3g}<extra></extra>",
        )
    layers = analysis.groups["layer"]
    figure.update_xaxes(
        title_text="layer",
        dtick=max(1, len(analysis.groups) // 36),
        range=[layers.min() - 0.5, layers.max() + 0.5],
    )
    figure.update_yaxes(title_text="‖Δ‖ / ‖W_base‖", rangemode="tozero")
    return finish(figure, "‖Δ‖ / ‖W_base‖ over depth", height=320)


def difference_energy(analysis: Analysis, layer: int, projection: str) -> go.Figure:
    """Where in the matrix the deltas are: share of ΣΔ² in bins of rows and of columns."""
    rows = of_group(analysis.energy_map, layer, projection)
    figure = go.Figure()
    for axis, word, colour in (
        ("row", "rows (out)", "#0072b2"),
        ("column", "columns (in)", "#e69f00"),
    ):
        bins = rows[rows["axis"] == axis]
        even = 1 / max(len(bins), 1)
        figure.add_scatter(
            x=percent((bins["bin"] + 0.5) / max(len(bins), 1)),
            y=bins["energy"] / even,
            name=word,
            mode="lines",
            line={"shape": "hvh", "color": colour},
            hovertemplate="at %{x:.0f} % of the side<br>%{y:.3g} × even share<extra></extra>",
        )
    figure.add_hline(y=1, line_dash="dot", line_width=1, annotation_text="evenly spread")
    figure.update_xaxes(title_text="position along the side", range=[0, 100], **PERCENT)
    figure.update_yaxes(title_text="energy, times an even share", rangemode="tozero")
    return finish(figure, f"Where the experts differ, layer {layer}, {projection}", height=440)


def rank_map(analysis: Analysis, energy: float = 0.95) -> go.Figure:
    """Layers by projections: the rank that keeps `energy` of the deltas."""
    ranks = pd.Series(
        [
            rank_for_energy(analysis, layer, projection, energy)
            for layer, projection in analysis.group_keys()
        ],
        index=analysis.groups.index,
    )
    grid = _grid(analysis, ranks)
    has_room = cell_height(len(grid.index)) >= PARTED
    figure = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(),
            x=list(grid.columns),
            y=[f"layer {layer}" for layer in grid.index],
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": "rank"}, "thickness": 12},
            texttemplate="%{z}" if has_room else None,
            hovertemplate="%{y}, %{x}<br>rank %{z}<extra></extra>",
            xgap=2,
            ygap=2 if has_room else 1,
        )
    )
    figure.update_xaxes(showgrid=False)
    _name_layers(figure, len(grid.index))
    height = max(300, map_height(len(grid.index)))
    return finish(figure, f"Rank that keeps {100 * energy:g} % of the energy", height=height)
