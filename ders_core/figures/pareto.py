"""Measured sizes against measured KL: tuned and uniform recipes, and cliffs between them."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from ders_core.figures.kl_axis import LEAST_KL, kl_axis
from ders_core.figures.measured_dots import Dot, add_dots
from ders_core.figures.page import Page
from ders_core.figures.style import ACCENT, PERCENT, QUIET, TUNED, UNIFORM, finish, percent
from ders_core.pipeline.quality import KL
from ders_core.tune.measured_series import Series
from ders_core.tune.trials import Trial
from ders_core.units import bytes_text


def pareto(found: Series, bytes_total: int) -> go.Figure:
    """A dot with its interval for each recipe that was measured; nothing is drawn between two. The
    prediction is a line. bytes_total: of the original's weight files."""
    figure = go.Figure()
    lossy = [trial for trial in found.tuned if trial.predicted_kl > LEAST_KL]
    figure.add_scatter(
        x=percent([trial.foretold_bytes / bytes_total for trial in lossy]),
        y=[trial.predicted_kl for trial in lossy],
        mode="lines",
        name="predicted",
        line={"color": QUIET, "dash": "dot"},
        hoverinfo="skip",
    )
    _dots(figure, found.tuned, bytes_total, "tuned", TUNED)
    _dots(figure, found.uniform, bytes_total, "best uniform recipe", UNIFORM)
    for cliff in found.cliffs:
        figure.add_vrect(
            x0=100 * cliff.small / bytes_total,
            x1=100 * cliff.large / bytes_total,
            fillcolor=ACCENT,
            opacity=0.15,
            line_width=0,
        )
    figure.update_xaxes(title_text="size, share of original", **PERCENT)
    figure.update_yaxes(title_text=KL.label, automargin=True, **kl_axis(figure))
    return finish(figure, "Size against KL, measured", height=480)


def _dots(
    figure: go.Figure, trials: Sequence[Trial], bytes_total: int, name: str, colour: str
) -> None:
    dots = [Dot(trial.label, trial.measured) for trial in trials]
    add_dots(figure, dots, bytes_total, name, colour)


def pareto_html(found: Series, name: str, bytes_total: int) -> str:
    """A page that stands alone: the figure, the cliffs, and each recipe to copy."""
    title = f"{name}: size against KL"
    page = Page(title, title)
    page.figure(pareto(found, bytes_total))
    for cliff in found.cliffs:
        page.paragraph(f"Cliff: {cliff.sentence}.")
    for trial in (*found.tuned, *found.uniform):
        heading = (
            f"{trial.label}, {bytes_text(trial.measured.nbytes)}, KL {KL.text(trial.measured.kl)}"
        )
        page.folded(heading, trial.recipe)
    return page.text()
