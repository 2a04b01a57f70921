"""All codecs are tried on few experts, and on the others those that a recipe may have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.scored_model import Scored

from ders_core.codecs import Codec, Entropy, LowRank, Quantized, Sparse
from ders_core.decompose.base import BaseContext
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.knowledge import group_knowledge
from ders_core.recipe import Recipe
from ders_core.tune import stack_scores
from ders_core.tune.first_look import WIDE, near_the_best
from ders_core.tune.scores import Candidate
from ders_core.tune.stack_scores import GroupScorer

EASY = [Quantized(bits=bits) for bits in (2, 3, 4)] + [LowRank(rank=rank) for rank in (1, 2)]
HARD = [Sparse(drop_rate=rate) for rate in (0.99, 0.9, 0.8)]
CODECS: list[Codec] = [*EASY, *HARD]

FIGURES = st.tuples(st.integers(1, 50), st.floats(0, 1), st.floats(0.5, 1))


@given(st.lists(FIGURES, min_size=len(CODECS), max_size=len(CODECS)), st.floats(0, 2))
def test_far_is_what_another_beats_widely(
    figures: list[tuple[int, float, float]], removal: float
) -> None:
    """Codecs without a ladder, compared one by one."""
    candidates = [
        Candidate(codec, nbytes, True, noise=noise, gain=gain)
        for codec, (nbytes, noise, gain) in zip(CODECS, figures, strict=True)
    ]
    losses = [noise + removal * (1 - gain) ** 2 for _, noise, gain in figures]

    def is_beaten(number: int, rivals: range) -> bool:
        return any(
            figures[rival][0] <= figures[number][0] and losses[number] > WIDE * losses[rival]
            for rival in rivals
        )

    assert near_the_best(candidates, removal) == [
        not is_beaten(number, range(len(CODECS)))
        or (number < len(EASY) and not is_beaten(number, range(len(EASY))))
        for number in range(len(CODECS))
    ]


def test_neighbours_on_a_ladder_go_with_it() -> None:
    knobs = [Entropy(knob=2.0**n, steps="sensitive", rounding="unbiased") for n in range(4)]
    losses, sizes = [1e-9, 1.0, 2.0, 3.0], [40, 30, 20, 10]
    rival = Candidate(LowRank(rank=1), 1, True, noise=1e-6)
    candidates = [
        Candidate(codec, nbytes, False, noise=noise)
        for codec, nbytes, noise in zip(knobs, sizes, losses, strict=True)
    ]
    assert near_the_best([*candidates, rival], 0.0) == [True, True, False, False, True]


def alike(one: Candidate, other: Candidate) -> bool:
    """Up to the rounding of sums, which depends on what codecs are judged together."""
    figures = [[each.noise, each.output, each.router, each.gain] for each in (one, other)]
    same = one.codec == other.codec and one.nbytes == other.nbytes
    return same and figures[0] == pytest.approx(figures[1], rel=1e-5)


def test_figures_of_what_is_near_are_of_all_experts(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = next(iter(scored.checkpoint.groups()))
    calibration = Calibration.open(scored.calibration)
    known = group_knowledge(group, calibration, (1e-3,) * 4, 6)

    def figures(is_near: list[bool] | None) -> tuple[Candidate, ...]:
        looks = (lambda told, _: is_near or [True] * len(told)) if is_near else near_the_best
        monkeypatch.setattr(stack_scores, "near_the_best", looks)
        context = BaseContext("cpu", calibration.tokens_per_expert)
        with torch.inference_mode():
            return GroupScorer(group, Recipe(name="r"), known, context, False).deltas(CODECS)[0]

    all_of_all, none_of_all = figures([True] * len(CODECS)), figures([False] * len(CODECS))
    found = figures(None)
    whole = [alike(*pair) for pair in zip(found, all_of_all, strict=True)]
    few = [alike(*pair) for pair in zip(found, none_of_all, strict=True)]
    assert not all(whole)
    assert not all(few)
    assert all(one or other for one, other in zip(whole, few, strict=True))
    assert [candidate.codec for candidate in found] == CODECS
