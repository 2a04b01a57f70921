"""Measured sizes against measured KL: tuned and uniform recipes, and cliffs between them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from ders_core.figures.report import PAGE_STYLE
from ders_core.figures.style import ACCENT, QUIET, finish
from ders_core.pipeline.quality import KL
from ders_core.tune.series import Series
from ders_core.tune.trials import Trial
from ders_core.units import bytes_text


def pareto(found: Series, bytes_total: int) -> go.Figure:
    """A dot with its interval for each recipe that was measured; nothing is drawn between two. The
    prediction is a line. bytes_total: of the original's weight files."""
    figure = go.Figure()
    figure.add_scatter(
        x=[trial.foretold_bytes / bytes_total for trial in found.tuned],
        y=[trial.predicted_kl for trial in found.tuned],
        mode="lines",
        name="predicted",
        line={"color": QUIET, "dash": "dot"},
        hoverinfo="skip",
    )
    _dots(figure, found.tuned, bytes_total, "tuned", "#0072b2")
    _dots(figure, found.uniform, bytes_total, "best uniform recipe", ACCENT)
    for cliff in found.cliffs:
        figure.add_vrect(
            x0=cliff.small / bytes_total,
            x1=cliff.large / bytes_total,
            fillcolor=ACCENT,
            opacity=0.15,
            line_width=0,
        )
    figure.update_xaxes(title_text="size, share of original", tickformat=".0%")
    figure.update_yaxes(title_text=KL.label, type="log", exponentformat="power")
    return finish(figure, "Size against KL, measured", height=480)


def _dots(
    figure: go.Figure, trials: Sequence[Trial], bytes_total: int, name: str, colour: str
) -> None:
    qualities = [trial.measured.quality for trial in trials]
    kls = [trial.measured.kl for trial in trials]
    ends = [
        (kl, kl) if each.kl_low is None or each.kl_high is None else (each.kl_low, each.kl_high)
        for each, kl in zip(qualities, kls, strict=True)
    ]
    figure.add_scatter(
        x=[trial.measured.nbytes / bytes_total for trial in trials],
        y=kls,
        mode="markers",
        name=name,
        marker={"size": 10, "color": colour},
        error_y={
            "array": [high - kl for (_, high), kl in zip(ends, kls, strict=True)],
            "arrayminus": [kl - low for (low, _), kl in zip(ends, kls, strict=True)],
        },
        text=[trial.label for trial in trials],
        customdata=[bytes_text(trial.measured.nbytes) for trial in trials],
        hovertemplate="%{text}<br>%{x:.1%} of original (%{customdata})<br>KL %{y:.3g} nats a token"
        "<extra></extra>",
    )


def pareto_html(found: Series, name: str, bytes_total: int) -> str:
    """A page that stands alone: the figure, the cliffs, and each recipe to copy."""
    title = f"{escape(name)}: size against KL"
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{PAGE_STYLE}</style></head><body><h1>{title}</h1>",
        pareto(found, bytes_total).to_html(
            full_html=False, include_plotlyjs=True, div_id="figure-1"
        ),
    ]
    parts += [f"<p>Cliff: {escape(cliff.sentence)}.</p>" for cliff in found.cliffs]
    for trial in (*found.tuned, *found.uniform):
        heading = (
            f"{trial.label}, {bytes_text(trial.measured.nbytes)}, KL {KL.text(trial.measured.kl)}"
        )
        parts.append(
            f"<details><summary>{escape(heading)}</summary><pre>{escape(trial.recipe)}</pre>"
            "</details>"
        )
    return "\n".join([*parts, "</body></html>"])
