"""Solutions of saved scores, kept while the studio runs: a slider asks for one at each move."""

from __future__ import annotations

import math
from dataclasses import dataclass

import streamlit as st

from ders_core.errors import RecipeError
from ders_core.later import pd
from ders_core.tune.allocate import Allocation, Solver
from ders_core.tune.bounds import Bound
from ders_core.tune.frontier import frontier
from ders_core.tune.scores import Scores
from ders_core.tune.uniform import knobs
from ders_core.ui.tune.wish import Wish

SIZES = 15
"""Of the predicted frontier."""

STEP = 0.1
"""Of the slider, in percent of the original."""

USUAL_KL = 0.1
"""Nats a token: the slider starts at the smallest size of the frontier that is predicted to cost
no more."""


@dataclass(frozen=True)
class Outlook:
    """All sizes at a glance. curve, knob: `share` of the original and predicted `kl`, of tuned
    recipes and of one knob for all, the smallest first. least, most: ends of the slider, in
    percent; the most loses nothing that can be kept."""

    curve: pd.DataFrame
    knob: pd.DataFrame
    least: float
    most: float

    @property
    def start(self) -> float:
        """Where the slider starts, in percent."""
        within = self.curve.loc[self.curve["kl"] <= USUAL_KL, "share"]
        wanted = 100 * float(within.iloc[0]) if len(within) else self.most
        return min(max(_up(wanted), self.least), self.most)

    def knob_within(self, share: float) -> float | None:
        """Predicted KL of the best of one knob for all that is no larger; None if none is."""
        within = self.knob.loc[self.knob["share"] <= share, "kl"]
        return float(within.iloc[-1]) if len(within) else None


@st.cache_resource(show_spinner=False, max_entries=8)
def _solver(version: str, wish: Wish, _scores: Scores) -> Solver:
    return Solver(_scores, "bytes", constraints=wish.constraints, friendly=wish.friendly)


@st.cache_resource(show_spinner="Solving for several sizes", max_entries=8)
def outlook(version: str, wish: Wish, _scores: Scores) -> Outlook:
    """version: names the scores. Raises RecipeError if nothing is left to choose."""
    solver, total = _solver(version, wish, _scores), _scores.bytes_total
    least, lossless = solver.sizes
    low = _up(100 * least / total)
    high = max(_up(100 * lossless / total), round(low + STEP, 1))
    found = frontier(solver, low / 100 * total, high / 100 * total, SIZES)
    return Outlook(
        pd.DataFrame(
            {
                "share": [each.nbytes / total for each in found],
                "kl": [each.predicted_kl for each in found],
            }
        ),
        _knob(version, _scores),
        low,
        high,
    )


@st.cache_resource(show_spinner=False, max_entries=8)
def _knob(version: str, _scores: Scores) -> pd.DataFrame:
    rivals = list(knobs(_scores))[::-1]
    return pd.DataFrame(
        {
            "share": [each.nbytes / _scores.bytes_total for each in rivals],
            "kl": [each.predicted_kl for each in rivals],
        }
    )


@st.cache_resource(show_spinner=False, max_entries=64)
def allocation(version: str, wish: Wish, percent: float, _scores: Scores) -> Allocation:
    """The best within a size. percent: of the original. Raises RecipeError if there is none."""
    most = percent / 100 * _scores.bytes_total
    return _solver(version, wish, _scores).solve(Bound("bytes", most))


@st.cache_resource(show_spinner=False, max_entries=16)
def smallest(version: str, wish: Wish, bound: Bound, _scores: Scores) -> float | None:
    """The least size that keeps to a KL, in percent of the original, up to a step of the slider;
    None if none does, which is kept too."""
    solver = Solver(_scores, "kl", constraints=wish.constraints, friendly=wish.friendly)
    try:
        found = solver.solve(bound)
    except RecipeError:
        return None
    return _up(100 * found.nbytes / _scores.bytes_total)


def _up(percent: float) -> float:
    """To a step of the slider, never below."""
    return round(math.ceil(percent / STEP - 1e-9) * STEP, 1)
