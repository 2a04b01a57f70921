"""Heat maps: the model at a glance, pairs of experts, where a matrix differs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import plotly.graph_objects as go

from ders_core.analysis import Analysis, of_group, rank_for_energy, square
from ders_core.figures.clickable import clickable
from ders_core.figures.style import (
    ACCENT,
    DIVERGING,
    LEAST_SPAN,
    PROJECTION_COLOURS,
    SEQUENTIAL,
    expert_colour,
    finish,
    power_ticks,
    widened,
)
from ders_core.later import np, pd

Metric = Literal["one_minus_cos", "norm_ratio"]
"""What colours the map of a model."""
FLOOR = 1e-12
"""Where 1 − cos is 0 the logarithm stops here."""
MOST_PARTED = 32
"""Experts beyond which the gaps between cells would hide the cells."""
MOST_NUMBERED = 24
"""Clusters that have room for their numbers."""
CELL, AROUND, MOST_HEIGHT = 26.0, 120, 900
"""Of a map of the model, px: a layer, all that is above and below, and the whole."""
PARTED = 12.0
"""Px of a cell from which on wide gaps leave enough of it."""


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
        shown, every = (np.log10(np.maximum(values, FLOOR)) for values in (shown, every))
        title, label = "Mean 1 − cos of experts", "1 − cos"
        low, high = widened(float(np.nanmin(every)), float(np.nanmax(every)))
        bar: dict[str, object] = power_ticks(low, high)
    else:
        title, label, bar = "‖Δ‖ / ‖W_base‖", "‖Δ‖/‖W‖", {}
        largest = float(np.nanmax(every))
        low, high = widened(float(np.nanmin(every)), largest, LEAST_SPAN * (largest or 1.0))
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
            ygap=2 if cell_height(len(raw.index)) >= PARTED else 1,
        )
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    cell = cell_height(len(raw.index))
    clickable(figure, size=min(18.0, 0.7 * cell))
    if chosen is not None:
        layer, projection = chosen
        _frame(figure, list(raw.columns).index(projection), list(raw.index).index(layer))
    return finish(figure, title, height=map_height(len(raw.index)))


def _frame(figure: go.Figure, column: int, row: int) -> None:
    """Around a cell of a map whose axes count cells or name them."""
    ends = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
    figure.add_shape(type="rect", line={"color": ACCENT, "width": 3}, **ends)


def cluster_order(distance: np.ndarray, clusters: Sequence[int]) -> list[int]:
    """The order of experts: by cluster, and within it similar ones next to each other (average
    linkage). clusters: of each expert."""
    count = len(distance)
    order = list(range(count))
    if count > 2 and distance.any():
        from scipy.cluster.hierarchy import leaves_list, linkage  # here: other pages need no scipy
        from scipy.spatial.distance import squareform

        symmetric = (distance + distance.T) / 2
        np.fill_diagonal(symmetric, 0.0)
        tree = linkage(squareform(symmetric, checks=False), "average", optimal_ordering=True)
        order = [int(index) for index in leaves_list(tree)]
    return sorted(order, key=clusters.__getitem__)  # stable


def _mark_clusters(figure: go.Figure, clusters: Sequence[int]) -> None:
    """Lines between the clusters of a K × K map, and a coloured strip with their numbers above.

    clusters: of each expert, in the order of the map.
    """
    figure.update_layout(margin_t=72, title={"y": 1, "yanchor": "top", "pad": {"t": 12}})
    edges = [0, *(np.flatnonzero(np.diff(clusters)) + 1).tolist(), len(clusters)]
    for begin, end in pairwise(edges):
        number = clusters[begin]
        figure.add_shape(
            type="rect",
            x0=begin - 0.5,
            x1=end - 0.5,
            y0=1.005,
            y1=1.03,
            yref="paper",
            fillcolor=expert_colour(number),
            line_width=0,
        )
        if len(edges) - 1 <= MOST_NUMBERED:
            figure.add_annotation(
                x=(begin + end - 1) / 2,
                y=1.03,
                yref="paper",
                yanchor="bottom",
                text=f"base {number}" if end - begin > 1 and len(edges) < 6 else str(number),
                showarrow=False,
                font_size=11,
            )
        if end < len(clusters):
            line = {"type": "line", "line_color": ACCENT, "line_width": 2}
            figure.add_shape(x0=end - 0.5, x1=end - 0.5, y0=0, y1=1, yref="paper", **line)
            figure.add_shape(y0=end - 0.5, y1=end - 0.5, x0=0, x1=1, xref="paper", **line)


def similarity_heatmap(
    analysis: Analysis,
    layer: int,
    projection: str,
    kind: Literal["experts", "deltas"] = "experts",
    beside: Analysis | None = None,
) -> go.Figure:
    """K × K: log10(1 − cos) of the experts, or the cosine of their deltas, in cluster order.

    E0 is expert 0. Where several bases pay, lines part their experts. 1 − cos has one range of
    colours in all layers, which has room for those of the analysis `beside` too.
    """
    apart = analysis.apart_in(layer, projection)
    clusters = analysis.clusters_of(layer, projection)
    order = cluster_order(apart.copy(), clusters)
    names = [f"E{index}" for index in order]
    chosen = np.ix_(order, order)
    gap = 1 if len(order) <= MOST_PARTED else 0
    common = {"x": names, "y": names, "xgap": gap, "ygap": gap}
    if kind == "deltas":
        pairs = analysis.pairs.of_group(layer, projection, columns=("cos_delta",))
        values = square(pairs, "cos_delta")
        heat = go.Heatmap(
            z=values[chosen],
            zmin=-1,
            zmax=1,
            colorscale=DIVERGING,
            colorbar={"title": {"text": "cos"}, "thickness": 12},
            hovertemplate="experts %{y}, %{x}<br>cos of deltas = %{z:.3g}<extra></extra>",
            **common,
        )
        title = f"Cosine of deltas, layer {layer}, {projection}"
    else:
        ends = [end for one in (analysis, beside) if one is not None for end in one.apart or ()]
        least, most = (min(ends), max(ends)) if ends else (1.0, 10.0)
        low, high = widened(*(float(np.log10(max(end, FLOOR))) for end in (least, most)))
        shown = np.log10(np.maximum(apart, FLOOR))
        np.fill_diagonal(shown, np.nan)
        heat = go.Heatmap(
            z=shown[chosen],
            customdata=apart[chosen],
            zmin=low,
            zmax=high,
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": "1 − cos"}, "thickness": 12, **power_ticks(low, high)},
            hovertemplate="experts %{y}, %{x}<br>1 − cos = %{customdata:.3e}<extra></extra>",
            hoverongaps=False,
            **common,
        )
        title = f"1 − cos of experts, layer {layer}, {projection}"
    figure = go.Figure(heat)
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    clickable(figure)
    finish(figure, title, height=440)
    if max(clusters) > 0:
        _mark_clusters(figure, [clusters[expert] for expert in order])
    return figure


def norm_bars(analysis: Analysis, layer: int, projection: str) -> go.Figure:
    """‖Δ‖ of each expert as a share of ‖W_base‖."""
    rows = of_group(analysis.experts, layer, projection)
    base = float(of_group(analysis.groups, layer, projection)["norm_base"].iloc[0]) or 1.0
    figure = go.Figure(
        go.Bar(
            x=[f"E{expert}" for expert in rows["expert"]],
            y=rows["norm_delta"] / base,
            marker_color=[expert_colour(int(expert)) for expert in rows["expert"]],
            hovertemplate="%{x}<br>‖Δ‖/‖W_base‖ = %{y:.3g}<extra></extra>",
        )
    )
    figure.update_yaxes(title_text="‖Δ‖ / ‖W_base‖", rangemode="tozero")
    return finish(figure, f"Norm of each delta, layer {layer}, {projection}", height=280)


def norm_ratio_over_depth(analysis: Analysis) -> go.Figure:
    """Mean ‖Δ‖/‖W_base‖ of each layer, one line a projection."""
    figure = go.Figure()
    for projection, rows in analysis.groups.groupby("projection", sort=False):
        figure.add_scatter(
            x=rows["layer"],
            y=rows["norm_ratio"],
            name=str(projection),
            mode="lines+markers",
            line_color=PROJECTION_COLOURS.get(str(projection)),
            hovertemplate="layer %{x}<br>‖Δ‖/‖W_base‖ = %{y:.3g}<extra>%{fullData.name}</extra>",
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
            x=(bins["bin"] + 0.5) / max(len(bins), 1),
            y=bins["energy"] / even,
            name=word,
            mode="lines",
            line={"shape": "hvh", "color": colour},
            hovertemplate="at %{x:.0%} of the side<br>%{y:.3g} × even share<extra></extra>",
        )
    figure.add_hline(y=1, line_dash="dot", line_width=1, annotation_text="evenly spread")
    figure.update_xaxes(title_text="position along the side", tickformat=".0%", range=[0, 1])
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
    figure = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(),
            x=list(grid.columns),
            y=[f"layer {layer}" for layer in grid.index],
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": "rank"}, "thickness": 12},
            texttemplate="%{z}",
            hovertemplate="%{y}, %{x}<br>rank %{z}<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    height = max(300, map_height(len(grid.index)))
    return finish(figure, f"Rank that keeps {100 * energy:g} % of the energy", height=height)
