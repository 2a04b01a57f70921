"""Where in their matrix two experts differ: blocks, with the sums over rows and columns."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ders_core.analysis.pair_difference import PairDifference
from ders_core.figures.style import MEAN, SEQUENTIAL, finish, power_ticks, widened
from ders_core.later import np, pd

DECADES = 3.0
"""Of the scale of colours, at most; what is below is drawn as its darkest."""


def pair_blocks(found: PairDifference, first: int, second: int) -> go.Figure:
    """Blocks of rows and columns; colour is log10 of ‖W_i − W_j‖² per entry, times an even share.
    Above and beside it the same of whole columns and rows."""
    densities = found.densities()
    logs = np.log10(np.maximum(densities, 1e-12))
    high = float(logs.max())
    low, high = widened(max(float(logs.min()), high - DECADES), high)
    rows, columns = _spans(found.row_edges), _spans(found.column_edges)
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_xaxes=True,
        shared_yaxes=True,
        row_heights=[0.18, 0.82],
        column_widths=[0.86, 0.14],
        horizontal_spacing=0.015,
        vertical_spacing=0.02,
    )
    figure.add_trace(
        go.Heatmap(
            z=np.maximum(logs, low),
            zmin=low,
            zmax=high,
            x=_middles(found.column_edges),
            y=_middles(found.row_edges),
            customdata=_told(densities, rows, columns),
            colorscale=SEQUENTIAL,
            colorbar={
                "title": {"text": "× even"},
                "thickness": 12,
                "len": 0.8,
                "y": 0.4,
                **power_ticks(low, high),
            },
            hovertemplate="rows %{customdata[1]}, columns %{customdata[2]}<br>"
            "%{customdata[0]:.3g} × an even share<extra></extra>",
        ),
        row=2,
        col=1,
    )
    line = {"mode": "lines", "line": {"color": MEAN, "shape": "hvh", "width": 1.5}}
    for told, edges, names, (row, col) in (
        (found.columns, found.column_edges, columns, (1, 1)),
        (found.rows, found.row_edges, rows, (2, 2)),
    ):
        even = _even(told, edges)
        word = "columns" if (row, col) == (1, 1) else "rows"
        along, across = ("x", "y") if word == "columns" else ("y", "x")
        figure.add_trace(
            go.Scatter(
                **{along: _middles(edges), across: even},
                customdata=np.stack([even.astype(object), names], -1),
                hovertemplate=f"{word} %{{customdata[1]}}<br>%{{customdata[0]:.3g}} × an even share"
                "<extra></extra>",
                showlegend=False,
                **line,
            ),
            row=row,
            col=col,
        )
    out, width = int(found.row_edges[-1]), int(found.column_edges[-1])
    figure.update_yaxes(range=[out - 0.5, -0.5], row=2)
    figure.update_xaxes(range=[-0.5, width - 0.5], col=1)
    figure.update_xaxes(title_text="column (in)", row=2, col=1)
    figure.update_yaxes(title_text="row (out)", row=2, col=1)
    figure.update_yaxes(rangemode="tozero", nticks=4, row=1, col=1)
    figure.update_xaxes(rangemode="tozero", nticks=3, row=2, col=2)
    figure.update_xaxes(showgrid=False, row=2, col=1)
    figure.update_yaxes(showgrid=False, row=2, col=1)
    return finish(figure, f"Where E{first} and E{second} differ", height=480)


def pair_table(found: PairDifference) -> pd.DataFrame:
    """A row for each block: its rows and columns (the end is not in it), ‖W_i − W_j‖² in it, and
    that times an even share."""
    row_starts, column_starts = np.meshgrid(
        found.row_edges[:-1], found.column_edges[:-1], indexing="ij"
    )
    row_ends, column_ends = np.meshgrid(found.row_edges[1:], found.column_edges[1:], indexing="ij")
    return pd.DataFrame(
        {
            "row": row_starts.ravel(),
            "row_end": row_ends.ravel(),
            "column": column_starts.ravel(),
            "column_end": column_ends.ravel(),
            "energy": found.blocks.ravel(),
            "times_even": found.densities().ravel(),
        }
    )


def _spans(edges: np.ndarray) -> np.ndarray:
    """What each block is called: "0–63"."""
    ends = edges[1:] - 1
    return np.array(
        [f"{a}–{b}" if b > a else f"{a}" for a, b in zip(edges[:-1], ends, strict=True)],
        dtype=object,
    )


def _middles(edges: np.ndarray) -> np.ndarray:
    middles: np.ndarray = (edges[:-1] + edges[1:] - 1) / 2
    return middles


def _even(energy: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean energy of the rows (or columns) of each block, times that of all."""
    mean = energy.mean()
    sums = np.add.reduceat(energy, edges[:-1])
    shares: np.ndarray = sums / np.diff(edges) / mean if mean else np.ones(len(sums))
    return shares


def _told(densities: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`[rows, columns, 3]`: a value and the names of its rows and columns."""
    down, across = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([densities.astype(object), down, across], -1)
