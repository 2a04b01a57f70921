"""Scores of a model that does not exist: small, whole, and with chosen costs."""

from __future__ import annotations

import numpy as np

from ders_core.codecs import CODECS, Codec
from ders_core.codecs.ladder import LadderContext
from ders_core.tune.coupling import Coupling
from ders_core.tune.scores import Candidate, Scores, UnitScores
from ders_core.tune.units import Unit

WEIGHTS = 4096
PROJECTIONS = ("gate", "up", "down")


def synthetic_scores(seed: int = 0, layers: int = 2) -> Scores:
    """Costs follow 4^−bits times a factor of each unit and of each form."""
    random = np.random.default_rng(seed)
    units = []
    for layer in range(layers):
        for projection in PROJECTIONS:
            deltas = Unit("deltas", layer, projection, None, "", None, WEIGHTS, 2 * WEIGHTS)
            base = Unit("base", layer, projection, None, "", None, WEIGHTS // 4, 0)
            units += [_scored(deltas, random, 0.5), _scored(base, random, 1.0)]
    head = Unit("tensor", None, "", None, "lm_head.weight", "head", WEIGHTS, 2 * WEIGHTS)
    units.append(_scored(head, random, 1.0))
    columns = sum(each.unit.part == "deltas" for each in units)
    shrinkage = random.normal(0.1, 1, (20, columns))
    total = sum(each.unit.nbytes for each in units) + 500
    return Scores("i" * 64, "c" * 64, False, total, 500, tuple(units), Coupling(4000, shrinkage))


def _scored(unit: Unit, random: np.random.Generator, read: float) -> UnitScores:
    context = LadderContext("deltas" if unit.part == "deltas" else "matrices", 20 * WEIGHTS)
    codecs = [codec for each in CODECS.values() for codec in each.ladder(context)]
    sensitivity = float(np.exp(random.normal(0, 1)))
    placed = dict[str, int]()
    candidates = []
    for codec in codecs:
        form = f"{codec.name} {codec.dump().get('rounding')} {codec.dump().get('gain')}"
        rank = placed[form] = placed.get(form, 0) + 1
        candidates.append(_candidate(codec, unit, 0.1 + 0.7 * rank, sensitivity))
    return UnitScores(unit, tuple(candidates), read, unit.layer if unit.layer is not None else -1)


def _candidate(codec: Codec, unit: Unit, bits: float, sensitivity: float) -> Candidate:
    if codec.lossless:
        bits = 16.0 if codec.name == "keep" else 11.0
        return Candidate(codec, round(bits * unit.weights / 8), True)
    coherent = {"lowrank": 0.2, "sparse": 0.05}.get(codec.name, 0.0)
    noise = 1e-2 * sensitivity * 4**-bits
    return Candidate(
        codec,
        round(bits * unit.weights / 8),
        False,
        noise=noise,
        output=noise,
        gain=1 - coherent * 2**-bits if unit.part == "deltas" else 1.0,
        error=2**-bits,
    )
