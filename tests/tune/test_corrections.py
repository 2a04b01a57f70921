"""What prediction got wrong by form: factors that made measurements are found again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic_scores import synthetic_scores

from ders_core.tune.allocate import solve
from ders_core.tune.bounds import Bound
from ders_core.tune.by_hand import best_uniform
from ders_core.tune.corrections import corrected, costs_by_form, fitted_factors, uncorrected

FORMS = ("quantized", "entropy", "lowrank")


@settings(max_examples=25, deadline=None)
@given(
    factors=st.tuples(*[st.floats(0.3, 4)] * 3),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-4, 1.0]),
)
def test_factors_are_found_again(factors: tuple[float, ...], seed: int, scale: float) -> None:
    """Of each form alone, and of two mixtures."""
    random = np.random.default_rng(seed)
    costs = [{form: scale * float(random.uniform(0.5, 2))} for form in FORMS]
    mixtures = scale * random.uniform(0.2, 2, (2, 3))
    costs += [dict(zip(FORMS, row, strict=True)) for row in mixtures.tolist()]
    true = dict(zip(FORMS, factors, strict=True))
    measured = [(each, sum(true[form] * cost for form, cost in each.items())) for each in costs]
    found = fitted_factors(measured)
    for form in FORMS:
        assert found[form] == pytest.approx(true[form], rel=0.25)


def test_a_form_that_hardly_counts_stays_as_predicted() -> None:
    found = fitted_factors([({"quantized": 1.0, "sparse": 1e-3}, 3.0)])
    assert found["quantized"] == pytest.approx(3, rel=0.05)
    assert found["sparse"] == pytest.approx(1, rel=0.05)


def test_what_lost_nothing_tells_nothing() -> None:
    assert fitted_factors([({}, 0.0), ({"sparse": 0.1}, 0.0)]) == {}
    assert fitted_factors([]) == {}


@pytest.mark.parametrize("bound", [Bound("share", 0.5), Bound("share", 0.2)], ids=str)
def test_costs_by_form_are_the_prediction(bound: Bound) -> None:
    scores = synthetic_scores()
    solution = solve(scores, bound)
    costs = costs_by_form(scores, solution)
    assert sum(costs.values()) == pytest.approx(solution.predicted_kl)
    assert min(costs.values()) > 0
    (alone,) = [costs_by_form(scores, best_uniform(scores, bound)["lowrank"])]
    assert alone["lowrank"] > 0


def test_corrected_scores_predict_what_factors_say() -> None:
    scores = synthetic_scores()
    uniform = best_uniform(scores, Bound("share", 0.5))
    for form, allocation in uniform.items():
        names = costs_by_form(scores, allocation)
        again = best_uniform(corrected(scores, dict.fromkeys(names, 4.0)), Bound("share", 0.5))
        assert again[form].nbytes == allocation.nbytes
        assert again[form].predicted_kl == pytest.approx(4 * allocation.predicted_kl, rel=0.15)


def test_a_form_that_costs_more_is_chosen_less() -> None:
    scores, bound = synthetic_scores(), Bound("share", 0.4)
    usual = costs_by_form(scores, solve(scores, bound))
    most = max(usual, key=lambda name: usual[name])
    dear = corrected(scores, {most: 30.0})
    share = costs_by_form(dear, solve(dear, bound)).get(most, 0.0) / 30
    assert share < usual[most] / 3


def test_what_corrected_scores_chose_is_told_as_it_was_predicted() -> None:
    """Of every strength, also those between the ones that were encoded."""
    scores, bound = synthetic_scores(), Bound("share", 0.4)
    factors = {"quantized": 3.0, "entropy": 0.4, "lowrank": 2.0}
    before = solve(scores, bound)
    same = uncorrected(scores, before, {})
    assert same.predicted_kl == pytest.approx(before.predicted_kl)
    found = solve(corrected(scores, factors), bound)
    told = uncorrected(scores, found, factors)
    assert told.predicted_kl >= before.predicted_kl * (1 - 1e-3)  # that one was the best there is
    known = {
        (number, candidate.codec): candidate
        for number, scored in enumerate(scores.units)
        for candidate in scored.candidates
    }
    compared = 0
    for number, each in enumerate(told.chosen):
        original = each.candidate and known.get((number, each.candidate.codec))
        if each.candidate is not None and original is not None:
            assert each.candidate.noise == pytest.approx(original.noise)
            assert each.candidate.gain == pytest.approx(original.gain)
            compared += 1
    assert compared
