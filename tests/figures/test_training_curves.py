"""Curves of a training that has just begun."""

from __future__ import annotations

import pandas as pd
import pytest

from ders_core import figures
from ders_core.upcycle.history import Tables

STEPS = ["step", "loss", "rate", "balance", "memory"]
LOADS = ["step", "layer", "expert", "share"]


def of_steps(count: int) -> pd.DataFrame:
    return pd.DataFrame({name: [float(step) for step in range(1, count + 1)] for name in STEPS})


@pytest.mark.parametrize(("count", "tick"), [(2, 1), (9, 1), (10, None), (200, None)])
def test_early_steps_have_a_tick_each(count: int, tick: int | None) -> None:
    """Halves of steps would be rounded to whole ones, each of which stood there twice."""
    steps = of_steps(count)
    tables = Tables(steps, pd.DataFrame(columns=["step", "heldout_perplexity"]), steps)
    for figure in (figures.rate_curve(steps), figures.loss_curves({"one": tables})):
        assert figure.layout.xaxis.dtick == tick
        assert figure.layout.xaxis.showticklabels is None


def test_before_the_first_step_no_numbers_are_made_up() -> None:
    nothing = of_steps(0)
    heldout = pd.DataFrame({"step": [0], "heldout_perplexity": [40.0]})
    tables = Tables(nothing, heldout[:0], pd.DataFrame(columns=LOADS))
    for figure in (
        figures.loss_curves({"one": tables}),
        figures.balance_curve(nothing),
        figures.memory_curve(nothing),
        figures.routing_spread(pd.DataFrame(columns=LOADS)),
    ):
        assert figure.layout.xaxis.showticklabels is False
        assert figure.layout.yaxis.showticklabels is False
    measured = figures.loss_curves({"one": Tables(nothing, heldout, tables.loads)})
    assert measured.layout.yaxis.showticklabels is None
