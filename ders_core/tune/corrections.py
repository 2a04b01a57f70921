"""What prediction got wrong, form by form: measured over predicted, and scores that know it.

Predictions err by form: an error that hangs together over a model costs more than its curvature
says, and a text unlike the calibration's makes everything cost more. Factors are fitted to all that
was measured by least squares of relative errors, each held near 1 as by one measurement that is
thirty times as uncertain, so that a form that was hardly used keeps its prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ders_core.later import np
from ders_core.tune.allocate import Allocation
from ders_core.tune.assembled import predicted_kl
from ders_core.tune.scores import Candidate, Scores, UnitScores

HELD = 0.03
"""How much an assumption that a factor is 1 weighs, beside a measurement."""

MOST_FACTOR = 30.0


def costs_by_form(scores: Scores, allocation: Allocation) -> dict[str, float]:
    """The predicted KL shared out over the forms, nats a token: in proportion to what the units of
    each form would cost without the others. Forms that lose nothing are left out."""
    candidates = [chosen.candidate for chosen in allocation.chosen]
    names = {each.codec.name: None for each in candidates if each is not None}
    alone = {
        name: predicted_kl(
            scores,
            [each if each is not None and each.codec.name == name else None for each in candidates],
        )
        for name in names
    }
    total = sum(alone.values())
    return {
        name: allocation.predicted_kl * cost / total for name, cost in alone.items() if cost > 0
    }


def fitted_factors(measured: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Measured over predicted, of each form. measured: the predicted costs by form of what was
    measured, and its KL, nats a token; those that lost nothing tell nothing."""
    from scipy.optimize import lsq_linear

    rows = [(costs, kl) for costs, kl in measured if costs and kl > 0]
    names = list(dict.fromkeys(name for costs, _ in rows for name in costs))
    if not names:
        return {}
    table = np.array([[costs.get(name, 0.0) / kl for name in names] for costs, kl in rows])
    equations = np.concatenate([table, HELD * np.eye(len(names))])
    wanted = np.concatenate([np.ones(len(rows)), HELD * np.ones(len(names))])
    found = lsq_linear(equations, wanted, bounds=(1 / MOST_FACTOR, MOST_FACTOR))
    return dict(zip(names, map(float, found.x), strict=True))


def corrected(scores: Scores, factors: Mapping[str, float]) -> Scores:
    """Scores of which each form's costs are multiplied by its factor."""

    def of_unit(scored: UnitScores) -> UnitScores:
        candidates = tuple(
            _multiplied(each, factors.get(each.codec.name, 1.0)) for each in scored.candidates
        )
        return replace(scored, candidates=candidates)

    return replace(scores, units=tuple(of_unit(scored) for scored in scores.units))


def uncorrected(scores: Scores, allocation: Allocation, factors: Mapping[str, float]) -> Allocation:
    """What was chosen by scores that were `corrected` by these factors, as `scores` predict it."""
    chosen = tuple(
        each
        if each.candidate is None
        else replace(
            each,
            candidate=_multiplied(each.candidate, 1 / factors.get(each.candidate.codec.name, 1.0)),
        )
        for each in allocation.chosen
    )
    kl = predicted_kl(scores, [each.candidate for each in chosen])
    return replace(allocation, chosen=chosen, predicted_kl=kl)


def _multiplied(candidate: Candidate, factor: float) -> Candidate:
    """What is missing of deltas costs by its square."""
    return replace(
        candidate,
        noise=factor * candidate.noise,
        output=factor * candidate.output,
        router=factor * candidate.router,
        gain=1 - (1 - candidate.gain) * factor**0.5,
    )
