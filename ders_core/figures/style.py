"""One look for every figure: colours, margins, numbers."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import plotly.graph_objects as go

from ders_core.later import np
from ders_core.units import number_text, visible

SEQUENTIAL = "Cividis"
DIVERGING = "RdBu"
EXPERT_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#8c6d31",
    "#7f7f7f",
)
"""Okabe and Ito's colour-blind-safe hues; expert k always has the same."""
SYMBOLS = ("circle", "diamond", "square", "triangle-up")
DASHES = ("solid", "dash", "dot", "dashdot")
ACCENT = "#d55e00"
QUIET = "#8a949e"
MEAN = "#6b7680"
"""Of what is the mean of experts: no expert's hue, and to be seen on light and dark ground."""
TUNED, UNIFORM = "#009e73", "#cc79a7"
"""Of what is tuned, predicted or measured, and of recipes with one strength for all."""
TOOL = "#2f8fbd"
"""Of the tool that is chosen among a plot's buttons, on light and dark ground."""
KEPT = "rgba(47, 143, 189, 0.28)"
"""Of an area that is kept."""
PERCENT = {"ticksuffix": " %"}
"""For an axis of `percent`."""
LEAST_SPAN = 0.1
"""Least width of a colour scale: in decades, or as a share of the largest value. Smaller
differences do not deserve contrasting colours."""
FLOOR = 1e-12
"""Where 1 − cos is 0 its logarithm stops here."""
MOST_LABELS = 24
"""Names along an axis: more are hard to read, and the browser measures each of them."""
PROJECTION_COLOURS = {"gate": "#0072b2", "up": "#e69f00", "down": "#009e73"}


def label_of(name: str) -> str:
    """A foreign name for a label, a legend or a hover text: plotly reads HTML in them."""
    return escape(visible(name), quote=False)


def expert_colour(expert: int) -> str:
    return EXPERT_COLOURS[expert % len(EXPERT_COLOURS)]


def expert_dash(expert: int) -> str:
    """Beyond eight experts the hues come again with another dash; where their lines are drawn
    together, all are solid."""
    return DASHES[expert // len(EXPERT_COLOURS) % len(DASHES)]


def run_symbol(number: int) -> str:
    """Of the dots of a run, which has the hue of the expert of its number: beyond eight the hues
    come again with another symbol."""
    return SYMBOLS[number // len(EXPERT_COLOURS) % len(SYMBOLS)]


def finish(figure: go.Figure, title: str, *, height: int = 360) -> go.Figure:
    """Title, margins, a transparent ground that follows the page's theme.

    What a hovered point belongs to is told in its text: plotly's own place for it (`<extra>`) is
    white in the dark theme too.
    """
    look: dict[str, Any] = {
        "title": {"text": title, "font": {"size": 15}, "x": 0, "xanchor": "left"},
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 48, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"namelength": -1},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": QUIET, "activecolor": TOOL},
        "legend": {"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0},
    }
    layout = figure.layout  # its `update` looks through the whole figure, for ten times as long
    for name, value in look.items():
        whole = isinstance(value, dict)
        layout[name] = {**layout[name].to_plotly_json(), **value} if whole else value
    return figure


def label_step(names: int) -> int:
    """How many names apart those are that an axis shows."""
    return max(1, -(-names // MOST_LABELS))


def percent(shares: Any) -> Any:
    """Shares as a figure shows them, for an axis with `PERCENT`: plotly's own percentages have no
    blank before their sign."""
    return 100 * np.asarray(shares, dtype=np.float64)


def level(
    figure: go.Figure, y: float, *, dash: str = "dash", width: float = 1, color: str = QUIET
) -> None:
    """Add a horizontal line. `add_hline` takes five times as long."""
    line = {"dash": dash, "width": width, "color": color}
    figure.add_shape(type="line", xref="x domain", x0=0, x1=1, yref="y", y0=y, y1=y, line=line)


def mark(figure: go.Figure, x: float) -> None:
    """Add a quiet vertical line. `add_vline` takes five times as long."""
    line = {"dash": "dash", "width": 1, "color": QUIET}
    figure.add_shape(type="line", xref="x", x0=x, x1=x, yref="y domain", y0=0, y1=1, line=line)


def without_ticks(figure: go.Figure) -> None:
    """For axes that have no values yet: plotly would number them from −1 to 6."""
    figure.update_xaxes(showticklabels=False, range=[0, 1])
    figure.update_yaxes(showticklabels=False, showgrid=False)


def logs(apart: np.ndarray | list[float]) -> np.ndarray:
    """log10 of 1 − cos."""
    return np.log10(np.maximum(apart, FLOOR))


def widened(low: float, high: float, least: float = LEAST_SPAN) -> tuple[float, float]:
    """The range of a colour scale, widened around its middle to `least` if it is narrower."""
    more = max(least - (high - low), 0.0) / 2
    return low - more, high + more


def power_ticks(low: float, high: float) -> dict[str, list[Any]]:
    """Ticks of a colour bar over log10 values: powers of ten where the range has enough, 1-2-5
    steps where it is narrow, else its ends."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    values = [float(decade) for decade in decades if low <= decade <= high]
    if len(values) < 3:
        steps = [math.log10(step) + decade for decade in decades for step in (1, 2, 5)]
        values = [value for value in steps if low <= value <= high]
    if len(values) < 2:
        values = [low, high]
    values = values[:: max(1, len(values) // 6)]
    return {"tickvals": values, "ticktext": [_tick(10**value) for value in values]}


def _tick(number: float) -> str:
    """Two digits at most: '0.005', '0.0058', '2e-7'."""
    mantissa, mark, exponent = number_text(number, 2).partition("e")
    return (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa) + mark + exponent
