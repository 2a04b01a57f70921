"""Strengths between those that were encoded, of codecs whose bytes and errors follow smoothly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from ders_core.later import np
from ders_core.tune.scores import Candidate

PARTS = 6
"""Into which a step of a ladder is divided."""

TINY = 1e-30


def with_finer(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, and those between neighbours of a ladder (`Codec.between`).

    Bytes, costs and errors are powers of the strength between neighbours, and the powers change
    smoothly along a ladder: a cubic through their logarithms that has no swings (PCHIP, Fritsch and
    Butland 1984). Gains follow in the same way, not by logarithms.
    """
    found = list[Candidate]()
    for run in runs(candidates):
        found += run if len(run) < 2 else _filled(run)
    return found


def runs(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Candidates that follow one another on a ladder."""
    run = list(candidates[:1])
    for before, candidate in pairwise(candidates):
        if before.codec.between(candidate.codec, 0.5) is None:
            yield run
            run = []
        run.append(candidate)
    if run:
        yield run


def _filled(run: list[Candidate]) -> list[Candidate]:
    from scipy.interpolate import PchipInterpolator

    places = np.arange(len(run))
    finer = np.arange(0, len(run) - 1 + 1e-9, 1 / PARTS)
    table = np.array(
        [[each.nbytes, each.noise, each.output, each.router, each.error] for each in run], float
    )
    logarithms = PchipInterpolator(places, np.log(np.maximum(table, TINY)))(finer)
    values = np.where(logarithms > np.log(TINY) / 2, np.exp(logarithms), 0.0)
    gains = PchipInterpolator(places, [each.gain for each in run])(finer)
    filled = list[Candidate]()
    for number, (row, gain) in enumerate(zip(values.tolist(), gains.tolist(), strict=True)):
        place, part = divmod(number, PARTS)
        if not part:
            filled.append(run[place])
            continue
        codec = run[place].codec.between(run[place + 1].codec, part / PARTS)
        assert codec is not None, "neighbours of a run have codecs between them"
        nbytes, noise, output, router, error = row
        filled.append(Candidate(codec, round(nbytes), False, noise, output, router, gain, error))
    return filled
