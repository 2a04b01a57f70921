"""Dots of recipes that were measured, each with the interval of its KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from ders_core.figures.kl_axis import LEAST_KL
from ders_core.figures.style import label_of, percent
from ders_core.tune.trials import Measurement
from ders_core.units import bytes_text


@dataclass(frozen=True)
class Dot:
    """label: what it is, for the hover text."""

    label: str
    measured: Measurement

    @property
    def ends(self) -> tuple[float, float]:
        """Of the KL's interval; twice the KL without one."""
        low, high = self.measured.quality.kl_low, self.measured.quality.kl_high
        return (self.measured.kl, self.measured.kl) if low is None or high is None else (low, high)


def add_dots(
    figure: go.Figure, dots: Sequence[Dot], bytes_total: int, name: str, colour: str
) -> None:
    """Size as a share of the original against KL, of those that lose something. bytes_total: of the
    original's weight files. name: in the legend."""
    dots = [dot for dot in dots if dot.measured.kl > LEAST_KL]
    kls = [dot.measured.kl for dot in dots]
    figure.add_scatter(
        x=percent([dot.measured.nbytes / bytes_total for dot in dots]),
        y=kls,
        mode="markers",
        name=name,
        marker={"size": 10, "color": colour},
        error_y={
            "array": [dot.ends[1] - kl for dot, kl in zip(dots, kls, strict=True)],
            "arrayminus": [kl - dot.ends[0] for dot, kl in zip(dots, kls, strict=True)],
        },
        text=[label_of(dot.label) for dot in dots],
        customdata=[bytes_text(dot.measured.nbytes) for dot in dots],
        hovertemplate="%{text}<br>%{x:.1f} % of original (%{customdata})<br>"
        "KL %{y:.3g} nats a token<extra></extra>",
    )
