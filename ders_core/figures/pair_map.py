"""The map of all pairs of experts of a group, and beside it the tree that orders them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import plotly.graph_objects as go

from ders_core.analysis import Analysis, square
from ders_core.analysis.expert_tree import ExpertTree
from ders_core.figures.clickable import clickable
from ders_core.figures.style import (
    ACCENT,
    DIVERGING,
    MEAN,
    SEQUENTIAL,
    expert_colour,
    finish,
    label_step,
    logs,
    power_ticks,
    widened,
)
from ders_core.later import np

Range = Literal["all layers", "this layer"]
"""Which layers a scale of colours has the range of."""
MOST_PARTED = 32
"""Experts beyond which the gaps between cells would hide the cells."""
MOST_NUMBERED = 24
"""Sets that have room for their numbers."""
MOST_TOLD = 6
"""Experts of a branch that are named where the pointer is."""
MOST_TICKS = 3
"""Distances that are written below the tree, which is narrow beside another map."""
OF_MAP, OF_TREE = (0.0, 0.82), (0.835, 1.0)
"""Shares of the width."""


def similarity_heatmap(
    analysis: Analysis,
    layer: int,
    projection: str,
    kind: Literal["experts", "deltas"] = "experts",
    beside: Analysis | None = None,
    colours: Range = "all layers",
) -> go.Figure:
    """K × K: log10(1 − cos) of the experts, or the cosine of their deltas, in the order of their
    tree. E0 is expert 0. Where several bases pay, lines part their experts.

    Of experts, rows are numbered from the top, and the tree stands beside them; its distances are
    on the scale of the colours. That is one in all layers, with room for those of the analysis
    `beside` too, or has the range of this layer's pairs: `colours`.
    """
    tree = analysis.expert_tree(layer, projection)
    sets = analysis.clusters_of(layer, projection)
    names = [f"E{expert}" for expert in tree.order]
    gap = 1 if len(names) <= MOST_PARTED else 0
    common = {"x": names, "xgap": gap, "ygap": gap}
    chosen = np.ix_(tree.order, tree.order)
    if kind == "deltas":
        pairs = analysis.pairs.of_group(layer, projection, columns=("cos_delta",))
        figure = _of_deltas(square(pairs, "cos_delta")[chosen], colours, y=names, **common)
    else:
        apart = analysis.apart_in(layer, projection)[chosen]
        low, high = _range(analysis, beside, apart, colours)
        figure = _of_experts(apart, low, high, y=list(range(len(names))), **common)
        _name_rows(figure, names)
    figure.update_xaxes(showgrid=False, dtick=label_step(len(names)))
    clickable(figure)
    if kind == "experts" and tree.joins:
        _draw_tree(figure, tree, low, high)
    word = "1 − cos of experts" if kind == "experts" else "Cosine of deltas"
    finish(figure, f"{word}, layer {layer}, {projection}", height=440)
    if max(sets) > 0:
        _mark_sets(figure, [sets[expert] for expert in tree.order])
    return figure


def _range(
    analysis: Analysis, beside: Analysis | None, apart: np.ndarray, colours: Range
) -> tuple[float, float]:
    """The ends of the scale of colours: log10 of 1 − cos. apart: of the group that is shown."""
    if colours == "this layer":
        ends = apart[~np.eye(len(apart), dtype=bool)].tolist()
    else:
        ends = [end for one in (analysis, beside) if one is not None for end in one.apart or ()]
    ends = ends or [1.0, 10.0]  # of a single expert
    return widened(*logs([min(ends), max(ends)]).tolist())


def _of_experts(apart: np.ndarray, low: float, high: float, **common: Any) -> go.Figure:
    shown = logs(apart).astype(np.float32)
    np.fill_diagonal(shown, np.nan)
    return go.Figure(
        go.Heatmap(
            z=shown,
            customdata=apart.astype(np.float32),
            zmin=low,
            zmax=high,
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": "1 − cos"}, "thickness": 12, **power_ticks(low, high)},
            hovertemplate="experts %{y}, %{x}<br>1 − cos = %{customdata:.3e}<extra></extra>",
            hoverongaps=False,
            **common,
        )
    )


def _of_deltas(cosines: np.ndarray, colours: Range, **common: Any) -> go.Figure:
    """colours: of this layer's pairs, the scale ends at the largest of them, and the diagonal is
    beyond it."""
    others = np.abs(cosines[~np.eye(len(cosines), dtype=bool)])
    most = float(others.max()) if colours == "this layer" and others.size else 1.0
    low, high = widened(-most, most)
    heat = go.Heatmap(
        z=cosines.astype(np.float32),
        zmin=low,
        zmax=high,
        colorscale=DIVERGING,
        colorbar={"title": {"text": "cos"}, "thickness": 12},
        hovertemplate="experts %{y}, %{x}<br>cos of deltas = %{z:.3g}<extra></extra>",
        **common,
    )
    figure = go.Figure(heat)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def _name_rows(figure: go.Figure, names: Sequence[str]) -> None:
    """Rows that are counted, so that a tree can stand at halves of them, have experts' names."""
    figure.update_yaxes(
        range=[len(names) - 0.5, -0.5],
        tick0=0,
        dtick=label_step(len(names)),
        labelalias={str(row): name for row, name in enumerate(names)},
        showgrid=False,
        zeroline=False,
    )


def _draw_tree(figure: go.Figure, tree: ExpertTree, low: float, high: float) -> None:
    """Beside the rows of a map: experts at its edge, and each join as far out as its branches are
    apart, between `low` and `high`, as log10."""
    room = 0.06 * (high - low)
    places: dict[tuple[int, ...], tuple[float, float]] = {
        (expert,): (low - room, float(row)) for row, expert in enumerate(tree.order)
    }
    across: list[float | None] = []
    down: list[float | None] = []
    for join in tree.joins:
        out = max(float(logs([join.apart])[0]), low)
        (left, upper), (right, lower) = places[join.left], places[join.right]
        places[join.left + join.right] = out, (upper + lower) / 2
        across += [left, out, out, right, None]
        down += [upper, upper, lower, lower, None]
    line = {"color": MEAN, "width": 1.5}
    common = {"xaxis": "x2", "yaxis": "y", "showlegend": False}
    figure.add_scatter(x=across, y=down, mode="lines", line=line, hoverinfo="skip", **common)
    joints = [places[join.left + join.right] for join in tree.joins]
    look: dict[str, Any] = {"mode": "markers", "marker": {"color": MEAN, "size": 5}}
    if len(tree.order) > MOST_PARTED:  # a dot takes the browser as long as all lines together
        look = {"mode": "lines", "line_width": 0}
    figure.add_scatter(
        x=[out for out, _ in joints],
        y=[row for _, row in joints],
        text=[f"{_told(join.left)}<br>and {_told(join.right)}" for join in tree.joins],
        customdata=[join.apart for join in tree.joins],
        **look,
        unselected={"marker": {"opacity": 1}},
        hovertemplate="%{text}<br>mean 1 − cos = %{customdata:.3e}<extra></extra>",
        **common,
    )
    ticks = power_ticks(low, high)
    every = math.ceil(len(ticks["ticktext"]) / MOST_TICKS)
    figure.layout.xaxis.domain = OF_MAP
    figure.layout.xaxis2 = {
        "domain": OF_TREE,
        "anchor": "y",
        "range": [low - room, high + room],
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
        "tickangle": -90,
        **{name: texts[::every] for name, texts in ticks.items()},
    }


def _told(experts: Sequence[int]) -> str:
    if len(experts) > MOST_TOLD:
        return f"{len(experts)} experts, E{min(experts)} to E{max(experts)}"
    return ", ".join(f"E{expert}" for expert in experts)


def _mark_sets(figure: go.Figure, sets: Sequence[int]) -> None:
    """Lines between the sets of a K × K map, and a coloured strip with their numbers above.

    sets: of each expert, in the order of the map.
    """
    figure.update_layout(margin_t=72, title={"y": 1, "yanchor": "top", "pad": {"t": 12}})
    edges = [0, *(np.flatnonzero(np.diff(sets)) + 1).tolist(), len(sets)]
    for begin, end in pairwise(edges):
        number = sets[begin]
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
        if end < len(sets):
            line = {"type": "line", "line_color": ACCENT, "line_width": 2}
            figure.add_shape(x0=end - 0.5, x1=end - 0.5, y0=0, y1=1, yref="paper", **line)
            figure.add_shape(y0=end - 0.5, y1=end - 0.5, x0=0, x1=1, xref="x domain", **line)
