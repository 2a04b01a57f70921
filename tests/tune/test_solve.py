"""Allocations: against every one there is, within their bounds, and as constraints have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from support.made_scores import made_scores
from support.messages import raises_saying

from ders_core.codecs import Keep, Lossless
from ders_core.errors import RecipeError
from ders_core.tune.allocate import Allocation, Solver, solve
from ders_core.tune.bounds import Bound, Measure
from ders_core.tune.constraints import Constraint
from ders_core.tune.coupling import Coupling
from ders_core.tune.problem import Problem
from ders_core.tune.scores import Candidate, Scores

COARSE = (1.0, 3.0)


def every_choice(scores: Scores) -> Iterator[list[Candidate | None]]:
    """All that a model can have: beside deltas that lose nothing no base that loses something, and
    none beside a group that stays."""
    found: list[list[tuple[Candidate | None, ...]]] = []
    for number, scored in enumerate(scores.units):
        if scored.unit.part == "base":
            continue
        if scored.unit.part == "tensor":
            found.append([(each,) for each in scored.candidates])
            continue
        options: list[tuple[Candidate | None, ...]] = []
        for deltas, base in product(scored.candidates, scores.units[number + 1].candidates):
            if isinstance(deltas.codec, Keep):
                options.append((deltas, None))
            elif base.codec.lossless or not deltas.codec.lossless:
                options.append((deltas, base))
        found.append(options)
    for parts in product(*found):
        yield [candidate for part in parts for candidate in part]


def within(scores: Scores, most: float) -> Iterator[tuple[float, int]]:
    """KL and bytes of each that fits."""
    problem = Problem.of(scores, "bytes", (), friendly=False)
    for chosen in every_choice(scores):
        nbytes = sum(each.nbytes for each in chosen if each is not None) + scores.bytes_beside
        if nbytes <= most:
            yield scores.coupling.kl(problem.loss(chosen)), nbytes


def simple(scores: Scores) -> Scores:
    """Losses that only add up."""
    nothing = Coupling(1000, np.zeros_like(scores.coupling.shrinkage), ())
    units = tuple(
        replace(each, candidates=tuple(replace(c, output=0.0) for c in each.candidates))
        for each in scores.units
    )
    return replace(scores, coupling=nothing, units=units)


def few(seed: int) -> Scores:
    """Three groups and a tensor: some ten thousand choices."""
    return made_scores(seed, layers=1, tensors=1, bits=COARSE)


@pytest.mark.parametrize(("seed", "share"), [(1, 0.5), (2, 0.3), (3, 0.15)])
def test_it_is_the_best_where_losses_add_up(seed: int, share: float) -> None:
    scores = simple(few(seed))
    most = share * scores.bytes_total
    best = min(kl for kl, _ in within(scores, most))
    found = solve(scores, Bound("share", share))
    assert found.nbytes <= most
    assert found.predicted_kl == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize(("seed", "share"), [(1, 0.4), (2, 0.2), (4, 0.12)])
def test_it_is_near_the_best_where_losses_meet(seed: int, share: float) -> None:
    """Deltas that shrink together, products, and choices that tip: sums near a point are not the
    whole truth, and what is best by the whole is looked for near the best sum."""
    scores = few(seed)
    most = share * scores.bytes_total
    best = min(kl for kl, _ in within(scores, most))
    found = solve(scores, Bound("share", share))
    assert found.nbytes <= most
    assert best * (1 - 1e-9) <= found.predicted_kl <= 1.01 * best


@pytest.mark.parametrize(
    ("seed", "factor", "share"), [(3, 1, 0.6), (2, 3, 0.6), (2, 3, 0.4), (5, 3, 0.3), (6, 3, 0.3)]
)
def test_changes_of_two_choices_are_weighed_by_the_whole(
    seed: int, factor: float, share: float
) -> None:
    """Where the best sum is up to a quarter above the best."""
    scores = made_scores(seed, layers=1, tensors=0, bits=COARSE)
    coupling = scores.coupling
    more = Coupling(coupling.tokens, factor * coupling.shrinkage, coupling.tipping)
    scores = replace(scores, coupling=more)
    best = min(kl for kl, _ in within(scores, share * scores.bytes_total))
    assert solve(scores, Bound("share", share)).predicted_kl == pytest.approx(best)


@pytest.mark.parametrize("share", [0.2, 0.3])
def test_it_does_not_go_to_and_fro_where_much_is_missing_together(share: float) -> None:
    """Ten times the coherence: where one group would do, all three give way, and all come back."""
    scores = made_scores(12, layers=1, tensors=0, bits=COARSE)
    coupling = scores.coupling
    strong = Coupling(coupling.tokens, 10 * coupling.shrinkage, coupling.tipping)
    scores = replace(scores, coupling=strong)
    best = min(kl for kl, _ in within(scores, share * scores.bytes_total))
    assert solve(scores, Bound("share", share)).predicted_kl == pytest.approx(best)


def check(scores: Scores, found: Allocation) -> None:
    """What an allocation says of itself is so."""
    problem = Problem.of(scores, "bytes", (), friendly=False)
    chosen = [each.candidate for each in found.chosen]
    assert found.predicted_kl == pytest.approx(scores.coupling.kl(problem.loss(chosen)))
    taken = sum(each.nbytes for each in chosen if each is not None)
    assert found.nbytes == taken + scores.bytes_beside
    assert found.size <= found.most * (1 + 1e-9)
    assert [each.scored for each in found.chosen] == list(scores.units)


@pytest.mark.parametrize("experts", [None, 4])
def test_bounds_of_all_measures_are_kept(experts: int | None) -> None:
    scores = made_scores(5, experts=experts)
    by_bytes = solve(scores, Bound("bytes", 0.2 * scores.bytes_total))
    by_bits = solve(scores, Bound("bits", 2.0))
    by_reading = solve(scores, Bound("read", 0.2 * by_bytes.read + 0.1 * scores.bytes_total))
    for found in (by_bytes, by_bits, by_reading):
        check(scores, found)
    assert by_bytes.nbytes <= 0.2 * scores.bytes_total
    of_experts = [each for each in by_bits.chosen if each.scored.unit.part != "tensor"]
    bits = 8 * sum(each.candidate.nbytes for each in of_experts if each.candidate)
    assert 1.8 <= bits / scores.expert_weights <= 2.0
    others = [each.candidate for each in by_bits.chosen if each.scored.unit.part == "tensor"]
    assert all(other is not None and other.codec == Lossless() for other in others)
    read = sum(
        each.scored.read * each.candidate.nbytes for each in by_reading.chosen if each.candidate
    )
    assert read + scores.bytes_beside <= by_reading.most


@pytest.mark.parametrize("seed", range(3))
def test_a_bound_of_kl_is_the_reverse(seed: int) -> None:
    """No smaller size loses as little, but for what a size between two options leaves free."""
    scores = made_scores(seed, layers=3)
    solver = Solver(scores, "kl")
    found = solver.solve(Bound("kl", 0.02))
    check(scores, found)
    assert found.predicted_kl <= 0.02
    smaller = solve(scores, Bound("bytes", 0.98 * found.nbytes))
    assert smaller.predicted_kl > 0.02


def test_more_room_never_loses_more() -> None:
    scores = made_scores(7, layers=4)
    solver = Solver(scores, "share")
    losses = [
        solver.solve(Bound("share", share)).predicted_kl for share in np.linspace(0.1, 0.6, 9)
    ]
    assert all(after <= 1.01 * before for before, after in pairwise(losses))


@pytest.mark.parametrize("seed", range(3))
def test_it_tells_the_least_size_and_the_least_without_loss(seed: int) -> None:
    scores = few(seed)
    least, lossless = Solver(scores, "bytes").sizes
    sizes = {True: list[int](), False: list[int]()}
    for chosen in every_choice(scores):
        loses = any(each is not None and not each.codec.lossless for each in chosen)
        sizes[loses].append(sum(each.nbytes for each in chosen if each is not None))
    assert least == min(sizes[True]) + scores.bytes_beside
    assert lossless == min(sizes[False]) + scores.bytes_beside
    assert solve(scores, Bound("bytes", lossless)).predicted_kl == 0
    assert solve(scores, Bound("bytes", lossless - 1)).predicted_kl > 0
    with pytest.raises(RecipeError):
        solve(scores, Bound("bytes", least - 1))


def test_constraints_are_kept() -> None:
    scores = made_scores(6)
    kept = Constraint(layers="1", projections=("gate",), only=("keep",))
    floor = Constraint(layers="0", parts=("deltas",), least_bits=2.5)
    without = Constraint(parts=("tensor",), without=("entropy", "keep", "lossless"))
    found = solve(scores, Bound("share", 0.5), constraints=[kept, floor, without])
    check(scores, found)
    for each in found.chosen:
        unit, candidate = each.scored.unit, each.candidate
        if unit.group == (1, "gate"):
            if unit.part == "deltas":
                assert candidate is not None
                assert candidate.codec == Keep()
            else:
                assert candidate is None  # a group that stays has no base
        elif unit.part == "deltas" and unit.layer == 0:
            assert candidate is not None
            assert candidate.codec.lossless or each.scored.bits(candidate) >= 2.5
        elif unit.part == "tensor":
            assert candidate is not None
            assert candidate.codec.name == "quantized"
    friendly = solve(scores, Bound("share", 0.3), friendly=True)
    codecs = [each.candidate.codec for each in friendly.chosen if each.candidate]
    assert all(codec.is_hardware_friendly for codec in codecs)


def test_what_cannot_be_met_is_refused() -> None:
    scores = made_scores(8)
    with raises_saying(RecipeError, "1 % of the original", "the least", "kB"):
        solve(scores, Bound("share", 0.01))
    with raises_saying(RecipeError, "layer 0, gate"):
        solve(scores, Bound("share", 0.5), constraints=[Constraint(only=("sparse",))])
    with raises_saying(RecipeError, "1e-09", "predicted"):
        lossy = Constraint(without=("lossless", "keep"))
        solve(scores, Bound("kl", 1e-9), constraints=[lossy])


@pytest.mark.parametrize("measure", ["share", "kl"])
def test_a_sketch_is_not_refined_and_keeps_to_the_bound(measure: Measure) -> None:
    """The size too, where a KL is asked for: what is refined then loses less in the same bytes."""
    scores = made_scores(4, layers=3)
    bound, solver = Bound(measure, 0.3 if measure == "share" else 0.02), Solver(scores, measure)
    sketch, found = solver.sketch(bound), solver.solve(bound)
    check(scores, sketch)
    assert found.predicted_kl <= sketch.predicted_kl
    assert found.most == sketch.most
    if measure == "kl":
        assert found.most == sketch.size


def test_the_gap_is_that_of_what_was_refined() -> None:
    """What is best by the whole has a larger sum."""
    scores = made_scores(3, layers=1, tensors=0, bits=COARSE)
    solver, bound = Solver(scores, "share"), Bound("share", 0.6)
    sketch, found = solver.sketch(bound), solver.solve(bound)
    assert found.predicted_kl < sketch.predicted_kl
    assert found.gap > sketch.gap
