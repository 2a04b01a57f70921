"""The axis of KLs has numbers, and files that lose nothing do not widen it."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from ders_core.figures.allocation import frontier
from ders_core.figures.kl_axis import LEAST_KL, kl_axis
from ders_core.later import pd

NONE_MEASURED = pd.DataFrame(columns=["name", "role", "share", "kl", "low", "high"], dtype=float)


@pytest.mark.parametrize(
    ("kls", "step"),
    [
        ([0.012, 0.03, 0.08], None),  # no power of ten lies among them
        ([0.012, 0.03, 0.2], 1),
        ([0.0, 0.02], None),
        ([], None),
    ],
)
def test_powers_of_ten_alone_are_numbered_where_there_are_enough(
    kls: list[float], step: int | None
) -> None:
    figure = go.Figure(go.Scatter(x=kls, y=kls))
    figure.update_yaxes(kl_axis(figure))
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis.dtick == step


@pytest.mark.parametrize(("kl", "drawn"), [(LEAST_KL / 10, ()), (0.02, (0.02,))])
def test_what_loses_nothing_is_not_drawn(kl: float, drawn: tuple[float, ...]) -> None:
    curve = pd.DataFrame({"share": [0.2, 0.6], "kl": [0.03, LEAST_KL / 10]})
    figure = frontier(curve, curve, NONE_MEASURED, (0.6, kl))
    *lines, chosen = figure.data
    assert [list(line.y) for line in lines] == [[0.03], [0.03]]
    assert tuple(chosen.y) == drawn
    assert figure.layout.yaxis.dtick is None
