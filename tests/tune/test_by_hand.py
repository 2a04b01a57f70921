"""Uniform recipes: one codec for all deltas, the best of a form by brute force."""

from __future__ import annotations

from itertools import product

import pytest
from support.synthetic_scores import synthetic_scores

from ders_core.codecs import Codec
from ders_core.tune.allocate import Allocation, solve
from ders_core.tune.assembled import assembled
from ders_core.tune.bounds import Bound
from ders_core.tune.by_hand import best_uniform
from ders_core.tune.constraints import Constraint
from ders_core.tune.scores import Candidate, Scores, UnitScores

BUDGETS = (Bound("share", 0.6), Bound("share", 0.25), Bound("bits", 1.5), Bound("kl", 0.02))


def codecs_of(allocation: Allocation, part: str) -> set[Codec]:
    return {
        chosen.candidate.codec
        for chosen in allocation.chosen
        if chosen.candidate is not None and (chosen.scored.unit.part == "deltas") == (part == "d")
    }


def pick(scored: UnitScores, codec: Codec | None) -> Candidate:
    lossless = [each for each in scored.candidates if each.codec.lossless]
    same = [each for each in scored.candidates if each.codec == codec]
    return same[0] if same else min(lossless, key=lambda each: each.nbytes)


def brute_force(scores: Scores, bound: Bound, form: str) -> Allocation | None:
    """All pairs of a codec of deltas and one of matrices, of those that were encoded."""
    deltas, matrices = scores.units[0], scores.units[1]
    of_form = [c.codec for c in deltas.candidates if c.codec.name == form]
    lossy = [None, *(c.codec for c in matrices.candidates if not c.codec.lossless)]
    best = None
    for codec, matrix in product(of_form, lossy):
        candidates = [pick(s, codec if s.unit.part == "deltas" else matrix) for s in scores.units]
        tried = assembled(scores, bound, candidates)
        if bound.measure == "kl":
            if tried.predicted_kl <= bound.most and (best is None or tried.size < best.size):
                best = tried
        elif tried.size <= tried.most and (best is None or tried.predicted_kl < best.predicted_kl):
            best = tried
    return best


@pytest.mark.parametrize("bound", BUDGETS, ids=lambda bound: bound.label)
def test_the_best_of_each_form_is_found(bound: Bound) -> None:
    scores = synthetic_scores()
    found = best_uniform(scores, bound)
    assert {"quantized", "entropy"} <= found.keys()
    ranks = []
    for form, allocation in found.items():
        assert {codec.name for codec in codecs_of(allocation, "d")} == {form}
        assert len(codecs_of(allocation, "d")) == 1
        assert len({c for c in codecs_of(allocation, "m") if not c.lossless}) <= 1
        wanted = brute_force(scores, bound, form)
        if bound.measure == "kl":
            assert allocation.predicted_kl <= bound.most
            ranks.append(allocation.size)
            assert wanted is None or allocation.size <= wanted.size * (1 + 1e-9)
        else:
            assert allocation.size <= allocation.most
            ranks.append(allocation.predicted_kl)
            assert wanted is None or allocation.predicted_kl <= wanted.predicted_kl * (1 + 1e-9)
        if form == "quantized":  # it has no strengths between
            assert wanted is not None
            assert allocation.nbytes == wanted.nbytes
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("bound", BUDGETS, ids=lambda bound: bound.label)
def test_no_uniform_recipe_is_predicted_to_be_better_than_the_solution(bound: Bound) -> None:
    for seed in range(1 if bound.measure == "kl" else 2):
        scores = synthetic_scores(seed)
        solution = solve(scores, bound)
        for allocation in best_uniform(scores, bound).values():
            if bound.measure == "kl":
                assert solution.size <= allocation.size * 1.003
            else:
                assert solution.predicted_kl <= allocation.predicted_kl * (1 + 1e-6)


def test_what_is_assembled_again_is_what_was_solved() -> None:
    scores = synthetic_scores()
    for bound in BUDGETS:
        solved = solve(scores, bound)
        again = assembled(scores, bound, [chosen.candidate for chosen in solved.chosen])
        assert again.nbytes == solved.nbytes
        assert again.read == pytest.approx(solved.read)
        assert again.predicted_kl == pytest.approx(solved.predicted_kl)
        if bound.measure != "kl":
            assert (again.size, again.most) == pytest.approx(
                (solved.size, solved.most), rel=1e-5
            )  # of equals the smaller


def test_nothing_fits() -> None:
    assert best_uniform(synthetic_scores(), Bound("share", 0.001)) == {}


def test_constraints_hold_for_uniform_recipes() -> None:
    scores, bound = synthetic_scores(), Bound("share", 0.4)
    forms = (Constraint(parts=("deltas",), without=("entropy", "chain")),)
    assert best_uniform(scores, bound, constraints=forms).keys() == {
        "quantized",
        "sparse",
        "lowrank",
    }
    for allocation in best_uniform(scores, bound, friendly=True).values():
        assert all(c.candidate.codec.is_hardware_friendly for c in allocation.chosen if c.candidate)
