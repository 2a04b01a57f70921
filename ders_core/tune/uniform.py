"""What one knob for the whole model would lose at the same size, by the same scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ders_core.codecs import Codec, Entropy
from ders_core.recipe.budget import codec_of_deltas, codec_of_matrices
from ders_core.tune.finer import with_finer
from ders_core.tune.problem import Problem
from ders_core.tune.scores import Candidate, Scores, UnitScores

STEP = 1 / 6
"""Octaves between the knobs that are compared."""


@dataclass(frozen=True)
class Rival:
    """knob: of the whole model. nbytes, predicted_kl: as of `Allocation`."""

    knob: float
    nbytes: int
    predicted_kl: float


def one_knob(scores: Scores, most: float) -> Rival | None:
    """The best of one knob for all (a `budget` in a recipe), within `most` bytes of weight files;
    None if none is."""
    return next((rival for rival in knobs(scores) if rival.nbytes <= most), None)


def knobs(scores: Scores) -> Iterator[Rival]:
    """One knob for all in every strength, the largest file first.

    Units that have no knob lose nothing. Figures of knobs between those that were encoded are
    interpolated, as those of the solver are.
    """
    ladders = [_ladder(scored) for scored in scores.units]
    problem = Problem(scores, (), 0.0)
    known = {knob for ladder in ladders for knob in ladder}
    if not known:
        return
    least, octaves = min(known), math.log2(max(known) / min(known))
    for number in range(int(octaves / STEP) + 1):
        knob = least * 2 ** (number * STEP)
        chosen = [
            _at(ladder, scored.candidates, _knob_of(scored, knob))
            for ladder, scored in zip(ladders, scores.units, strict=True)
        ]
        nbytes = sum(candidate.nbytes for candidate in chosen) + scores.bytes_beside
        yield Rival(knob, nbytes, scores.coupling.kl(problem.loss(chosen)))


def _of_budget(scored: UnitScores, knob: float) -> Entropy:
    """The codec that a budget gives a unit."""
    is_deltas = scored.unit.part == "deltas"
    codec: Codec = codec_of_deltas(knob) if is_deltas else codec_of_matrices(knob)
    assert isinstance(codec, Entropy)
    return codec


def _knob_of(scored: UnitScores, knob: float) -> float:
    """Of a unit, from that of the whole model."""
    own = _of_budget(scored, knob).knob
    assert own is not None
    return own


def _ladder(scored: UnitScores) -> dict[float, Candidate]:
    """By their knobs, those that a budget gives."""
    rounding = _of_budget(scored, 1.0).rounding
    return {
        candidate.codec.knob: candidate
        for candidate in with_finer(scored.candidates)
        if isinstance(candidate.codec, Entropy)
        and candidate.codec.knob is not None
        and candidate.codec.rounding == rounding
    }


def _at(
    ladder: dict[float, Candidate], candidates: tuple[Candidate, ...], knob: float
) -> Candidate:
    """The candidate with the nearest knob; without any, the smallest that loses nothing."""
    if not ladder:
        exact = [candidate for candidate in candidates if candidate.codec.lossless]
        return min(exact, key=lambda candidate: candidate.nbytes)
    return ladder[min(ladder, key=lambda each: abs(math.log(each / knob)))]
