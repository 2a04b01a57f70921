"""What a person would try by hand: one form in one strength for all deltas, whatever they are.

Bases and other tensors lose nothing, or all have one codec too: the better of the two counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ders_core.tune.allocate import Allocation
from ders_core.tune.assembled import assembled, most_of, predicted_kl, size_of
from ders_core.tune.bounds import Bound
from ders_core.tune.constraints import Constraint, allowed
from ders_core.tune.finer import runs, with_finer
from ders_core.tune.scores import Candidate, Scores, UnitScores

Ladder = Mapping[str, Candidate]
"""The candidates of a unit by their codecs as JSON, which are compared faster than codecs."""


def best_uniform(
    scores: Scores,
    bound: Bound,
    *,
    constraints: Sequence[Constraint] = (),
    friendly: bool = False,
) -> dict[str, Allocation]:
    """The best of each form that keeps to the bound, by prediction, the best form first.

    The form is the word of the deltas' codec. constraints, friendly: as of `solve`.
    """
    ladders = [
        _ladder(each, allowed(each, constraints, friendly=friendly)) for each in scores.units
    ]
    if not all(ladders):
        return {}
    is_delta = [each.unit.part == "deltas" for each in scores.units]
    deltas = [ladder for ladder, delta in zip(ladders, is_delta, strict=True) if delta]
    matrices = [ladder for ladder, delta in zip(ladders, is_delta, strict=True) if not delta]
    best = dict[str, Allocation]()
    for strengths in _strengths(deltas):
        form = deltas[0][strengths[0]].codec.name
        for matrix in [None, *_common(matrices)]:
            choices = [
                [_of(ladder, codec if delta else matrix) for codec in strengths]
                for ladder, delta in zip(ladders, is_delta, strict=True)
            ]
            found = _within(scores, bound, choices)
            if found is not None and (form not in best or _rank(found) < _rank(best[form])):
                best[form] = found
    return dict(sorted(best.items(), key=lambda item: _rank(item[1])))


def _rank(allocation: Allocation) -> float:
    by_size = allocation.bound.measure == "kl"
    return allocation.size if by_size else allocation.predicted_kl


def _ladder(scored: UnitScores, candidates: Sequence[Candidate]) -> Ladder:
    """Of deltas with the strengths between those that were encoded."""
    tried = with_finer(candidates) if scored.unit.part == "deltas" else candidates
    return {json.dumps(candidate.codec.dump()): candidate for candidate in tried}


def _strengths(deltas: Sequence[Ladder]) -> list[list[str]]:
    """Codecs that all deltas can have, in runs whose bytes and errors follow their order, the
    smallest first. A codec between which and its neighbours there is none is a run of its own."""
    common = set(_common(deltas))
    shared = {key: candidate for key, candidate in deltas[0].items() if key in common}
    names = {id(candidate): key for key, candidate in shared.items()}
    return [
        sorted(
            (names[id(candidate)] for candidate in run),
            key=lambda codec: sum(ladder[codec].nbytes for ladder in deltas),
        )
        for run in runs(list(shared.values()))
    ]


def _common(ladders: Sequence[Ladder]) -> list[str]:
    """Codecs that lose something, and that all have which may lose something."""
    lossy = [
        [codec for codec, candidate in ladder.items() if not candidate.codec.lossless]
        for ladder in ladders
    ]
    some = [set(codecs) for codecs in lossy if codecs]
    shared = set.intersection(*some) if some else set()
    return [codec for codec in max(lossy, key=len, default=[]) if codec in shared]


def _of(ladder: Ladder, codec: str | None) -> Candidate:
    """The candidate of a codec; of a unit that cannot have it, the smallest that loses nothing, or
    if all lose something the one that loses least."""
    if codec is not None and codec in ladder:
        return ladder[codec]
    lossless = [candidate for candidate in ladder.values() if candidate.codec.lossless]
    if not lossless:
        return min(ladder.values(), key=lambda candidate: candidate.noise)
    return min(lossless, key=lambda candidate: candidate.nbytes)


def _within(
    scores: Scores, bound: Bound, choices: Sequence[Sequence[Candidate]]
) -> Allocation | None:
    """The largest strength whose size keeps to the bound; of a KL the smallest that keeps to it.

    choices: of each unit, its candidate at each strength, the smallest first. Sizes and predicted
    KLs follow the order of the strengths, so that halving finds it.
    """
    by_kl = bound.measure == "kl"
    low, high, found = 0, len(choices[0]), None
    while low < high:
        middle = (low + high) // 2
        tried = [of_unit[middle] for of_unit in choices]
        if by_kl:
            keeps = predicted_kl(scores, tried) <= bound.most
        else:
            keeps = size_of(scores, bound, tried) <= most_of(scores, bound)
        if keeps:
            found = tried
        if keeps != by_kl:
            low = middle + 1
        else:
            high = middle
    return None if found is None else assembled(scores, bound, found)
