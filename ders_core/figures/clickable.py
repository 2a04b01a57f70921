"""Cells of a heat map that can be clicked: browsers report clicks on points alone."""

from __future__ import annotations

import plotly.graph_objects as go

from ders_core.figures.style import ACCENT
from ders_core.later import np

MOST_CELLS = 1024
"""Beyond, the points would make the page slow; then a map can only be looked at."""


def clickable(figure: go.Figure, size: float = 18.0) -> None:
    """Lay an unseen point over each cell of a figure's only heat map that has a value. It takes
    over the cell's hover text, and is drawn as a frame once it is selected. size: of the frame,
    px."""
    heat = figure.data[0]
    values = np.asarray(heat.z, dtype=float)
    if values.size > MOST_CELLS:
        return
    rows, columns = np.nonzero(np.isfinite(values))
    told = values if heat.customdata is None else np.asarray(heat.customdata)
    figure.add_scatter(
        x=[heat.x[column] for column in columns],
        y=[heat.y[row] for row in rows],
        customdata=told[rows, columns],
        mode="markers",
        marker={
            "symbol": "square-open",
            "size": size,
            "color": ACCENT,
            "line_width": 3,
            "opacity": 0,
        },
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 0}},
        hovertemplate=heat.hovertemplate.replace("%{z", "%{customdata"),
        showlegend=False,
    )
    heat.update(hoverinfo="skip", hovertemplate=None)
    figure.update_layout(hovermode="closest", hoverdistance=-1)
