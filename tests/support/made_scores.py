"""Scores whose numbers are made up: rates and losses as codecs have them, without a checkpoint."""

from __future__ import annotations

import numpy as np

from ders_core.codecs import Entropy, Keep, Lossless, Quantized
from ders_core.tune.coupling import Coupling, TippingCurve
from ders_core.tune.scores import Candidate, Scores, UnitScores
from ders_core.tune.units import Unit

WEIGHTS = 10_000
"""Of a matrix."""

PROJECTIONS = ("gate", "up", "down")


def made_scores(
    seed: int,
    *,
    layers: int = 2,
    experts: int | None = None,
    tensors: int = 2,
    bits: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0),
    cost: float = 0.05,
) -> Scores:
    """experts: units of each group; None: one for the group, of 4 experts. bits: of the lossy
    candidates. cost: about what a unit loses at 0 bits, nats a token."""
    random = np.random.default_rng(seed)
    units = []
    for layer in range(layers):
        for projection in PROJECTIONS:
            for expert in range(experts) if experts else (None,):
                weights = WEIGHTS if experts else 4 * WEIGHTS
                nbytes = 2 * weights
                unit = Unit("deltas", layer, projection, expert, "", None, weights, nbytes)
                found = _lossy(unit, bits, cost * random.lognormal(), random, shrinks=True)
                units.append(_scored(unit, found, 0.5, layer))
            unit = Unit("base", layer, projection, None, "", None, WEIGHTS, 0)
            units.append(_scored(unit, _lossy(unit, bits, cost, random), 1.0, layer))
    for number in range(tensors):
        name = f"model.layers.{number}.self_attn.q_proj.weight"
        unit = Unit("tensor", number, "", None, name, "attention", WEIGHTS, 2 * WEIGHTS)
        units.append(_scored(unit, _lossy(unit, bits, cost, random), 1.0, number - 1))
    columns = sum(each.unit.part == "deltas" for each in units)
    shrinkage = random.normal(1.0, 0.5, (12, columns)) * np.sqrt(1000 * cost / columns)
    curves = tuple(
        TippingCurve(layer, 2.0, 0.1, 0.01, tuple(0.02 * (1 - np.exp(-np.arange(64) / 20))))
        for layer in range(layers)
    )
    total = 2 * sum(each.unit.weights for each in units)
    return Scores(
        "0" * 64,
        "1" * 64,
        experts is not None,
        total,
        1000,
        tuple(units),
        Coupling(1000, shrinkage, curves),
    )


def _scored(unit: Unit, candidates: list[Candidate], read: float, before: int) -> UnitScores:
    return UnitScores(unit, tuple(candidates), read, before)


def _lossy(
    unit: Unit,
    bits: tuple[float, ...],
    cost: float,
    random: np.random.Generator,
    *,
    shrinks: bool = False,
) -> list[Candidate]:
    """Those that lose something, in two forms by turns, and those that do not."""
    found = []
    for number, each in enumerate(bits):
        loss = cost * 4**-each * random.uniform(0.8, 1.25)
        codec = (
            Quantized(bits=1 + number // 2 % 8, group_size=64 + number)
            if number % 2
            else Entropy(bits=each, rounding="unbiased")
        )
        gain = 1 - 2**-each * random.uniform(0, 0.5) if shrinks and number % 2 else 1.0
        nbytes = round(each * unit.weights / 8 * random.uniform(0.95, 1.05))
        found.append(Candidate(codec, nbytes, True, loss, loss * 2, loss * 1e-3, gain, 2**-each))
    found.append(Candidate(Lossless(), round(1.4 * unit.weights), False))
    found.append(Candidate(Keep(), 2 * unit.weights, True))
    return found
