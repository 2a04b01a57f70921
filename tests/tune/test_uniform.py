"""One knob for a whole model, by scores: what a budget in a recipe would give each unit."""

from __future__ import annotations

import math

import pytest
from support.scored_model import Scored

from ders_core.codecs import Codec
from ders_core.recipe.budget import codec_of_deltas, codec_of_matrices
from ders_core.tune.assembled import predicted_kl
from ders_core.tune.finer import with_finer
from ders_core.tune.scores import Candidate, UnitScores
from ders_core.tune.uniform import knobs


def of_budget(scored: UnitScores, knob: float) -> Candidate:
    """The candidate that is like a budget's codec in all but the knob, with the nearest one."""
    is_deltas = scored.unit.part == "deltas"
    wanted = codec_of_deltas(knob) if is_deltas else codec_of_matrices(knob)

    def is_like(codec: Codec) -> bool:
        fields = {**codec.dump(), "knob": None}
        return fields == {**wanted.dump(), "knob": None}

    def distance(candidate: Candidate) -> float:
        return abs(math.log(candidate.codec.dump()["knob"] / wanted.dump()["knob"]))

    like = [each for each in with_finer(scored.candidates) if is_like(each.codec)]
    if not like:
        exact = [each for each in scored.candidates if each.codec.lossless]
        return min(exact, key=lambda each: each.nbytes)
    return min(like, key=distance)


def test_one_knob_gives_what_a_budget_gives(scored: Scored) -> None:
    """Deltas have other codecs with the same knobs, which a budget does not give them."""
    scores = scored.scores
    rivals = list(knobs(scores))
    assert len(rivals) > 20
    for rival in rivals[::6]:
        chosen = [of_budget(each, rival.knob) for each in scores.units]
        nbytes = sum(each.nbytes for each in chosen) + scores.bytes_beside
        assert rival.nbytes == nbytes
        assert rival.predicted_kl == pytest.approx(predicted_kl(scores, chosen), rel=1e-12)
