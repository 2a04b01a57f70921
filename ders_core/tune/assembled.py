"""An allocation from the candidate of each unit, whoever chose them."""

from __future__ import annotations

from collections.abc import Sequence

from ders_core.tune.allocate import Allocation, Chosen
from ders_core.tune.bounds import Bound
from ders_core.tune.problem import Problem
from ders_core.tune.scores import Candidate, Scores


def assembled(scores: Scores, bound: Bound, candidates: Sequence[Candidate | None]) -> Allocation:
    """What these candidates come to, measured as the bound is.

    candidates: of each unit; None for a base that is not there.
    """
    size = size_of(scores, bound, candidates)
    return Allocation(
        bound,
        tuple(Chosen(*pair) for pair in zip(scores.units, candidates, strict=True)),
        round(size_of(scores, Bound("bytes", 1), candidates)),
        size_of(scores, Bound("read", 1), candidates),
        predicted_kl(scores, candidates),
        size,
        size if bound.measure == "kl" else most_of(scores, bound),
        0.0,
    )


def size_of(scores: Scores, bound: Bound, candidates: Sequence[Candidate | None]) -> float:
    """What these candidates take, in the bound's measure; bytes for a bound of KL."""
    known = [
        (scored, candidate.nbytes)
        for scored, candidate in zip(scores.units, candidates, strict=True)
        if candidate is not None
    ]
    if bound.measure == "bits":
        of_experts = sum(nbytes for scored, nbytes in known if scored.unit.part != "tensor")
        return 8 * of_experts / scores.expert_weights
    if bound.measure == "read":
        return sum(scored.read * nbytes for scored, nbytes in known) + scores.bytes_beside
    return float(sum(nbytes for _, nbytes in known) + scores.bytes_beside)


def most_of(scores: Scores, bound: Bound) -> float:
    """What there may be, in the bound's measure; of a share in bytes."""
    return bound.most * (scores.bytes_total if bound.measure == "share" else 1.0)


def predicted_kl(scores: Scores, candidates: Sequence[Candidate | None]) -> float:
    """Nats a token. candidates: of each unit; None where nothing is lost."""
    return scores.coupling.kl(Problem(scores, (), 0.0).loss(candidates))
