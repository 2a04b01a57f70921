"""Which candidates are worth a second look, after all were told from few experts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ders_core.later import np
from ders_core.tune.finer import runs, with_finer
from ders_core.tune.scores import Candidate

WIDE = 3.0
"""A candidate that loses so many times what another one of at most as many bytes does is in no
recipe: what few experts told of it is enough."""


def near_the_best(candidates: Sequence[Candidate], removal: float) -> list[bool]:
    """Of each candidate of a unit of deltas, whether it may be in a recipe.

    Those that hardware decodes easily are compared with each other too. The neighbours on a ladder
    of what may be taken are looked at with it: strengths between them are told from both. removal:
    as of `EncodeContext`, of the whole unit.
    """
    easy = [each for each in candidates if each.codec.is_hardware_friendly]
    near = {
        id(candidate)
        for rivals in (candidates, easy)
        for candidate in _within_reach(rivals, removal)
    }
    beside = {
        id(one)
        for run in runs(candidates)
        for pair in pairwise(run)
        for one, other in (pair, pair[::-1])
        if id(other) in near
    }
    return [id(candidate) in near | beside for candidate in candidates]


def _within_reach(rivals: Sequence[Candidate], removal: float) -> list[Candidate]:
    """Those that lose at most WIDE times what the best of their size or less does."""
    finer = with_finer(rivals)
    sizes = np.array([each.nbytes for each in finer])
    losses = np.array([_loss(each, removal) for each in finer])
    return [
        each
        for each in rivals
        if _loss(each, removal) <= WIDE * losses[sizes <= each.nbytes].min(initial=np.inf)
    ]


def _loss(candidate: Candidate, removal: float) -> float:
    """As if as much were missing of all deltas."""
    return candidate.noise + removal * (1 - candidate.gain) ** 2
