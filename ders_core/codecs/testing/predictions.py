"""Checks of the errors that a codec expects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ders_core.codecs.codec import Codec, EncodeContext
from ders_core.codecs.testing.inputs import gaussian

GAUSSIAN_SHAPE = (96, 1024)
LEAST_OF_EXPECTED, MOST_OF_EXPECTED = 0.2, 1.5
"""The error on Gaussian deltas as a multiple of the expected one. Small blocks may do far better
than expected; no codec does much worse. What a code of least squares lacks, 1 − a, is the error's
square."""

GAIN_TOLERANCE, CHANCE = 0.01, 5
"""By how much a gain may differ from the expected one: this, and so many standard deviations of
what is drawn by chance."""


@dataclass(frozen=True)
class MeasuredStatistics:
    """`DeltaStatistics` of deltas that are at hand, `[out, in]` each, in float64."""

    deltas: Sequence[torch.Tensor]
    groups: int = 1

    def energy_of_rank(self, rank: int) -> float:
        squares = [torch.linalg.svdvals(delta.double()).square() for delta in self.deltas]
        total = sum(float(each.sum()) for each in squares)
        return sum(float(each[:rank].sum()) for each in squares) / total

    def energy_of_smallest(self, share: float) -> float:
        squares = torch.cat([delta.double().flatten() for delta in self.deltas]).square()
        ordered = squares.sort().values
        return float(ordered[: round(share * len(ordered))].sum() / ordered.sum())


def check_expected(codec: Codec) -> None:
    """On Gaussian deltas gain and noise are near the expected ones, where there are any."""
    deltas = [gaussian(GAUSSIAN_SHAPE, seed) for seed in (1, 2)]
    expected = codec.expected(MeasuredStatistics(deltas))
    if expected is None:
        return
    settled, base = codec.fit(deltas), torch.zeros(GAUSSIAN_SHAPE)
    lost = shared = energy = 0.0
    for seed, delta in enumerate(deltas):
        context = EncodeContext(torch.float32, seed)
        restored = settled.unpack(settled.pack(delta, base, context), base, context)
        exact = delta.double()
        rest = restored.double() - exact
        lost += float(rest.square().sum())
        shared += float((rest * exact).sum())
        energy += float(exact.square().sum())
    missing, error = -shared / energy, math.sqrt(lost / energy)
    noise = math.sqrt(max(lost / energy - missing**2, 0.0))
    for measured, wanted in ((error, expected.error), (noise, expected.noise)):
        assert measured >= LEAST_OF_EXPECTED * wanted - 1e-5, (expected, measured)
        assert measured <= MOST_OF_EXPECTED * wanted + 1e-5, (expected, measured)
    chance = CHANCE * expected.noise / math.sqrt(2 * math.prod(GAUSSIAN_SHAPE))
    least, most = (
        bound**2 * (1 - expected.gain) for bound in (LEAST_OF_EXPECTED, MOST_OF_EXPECTED)
    )
    assert missing >= least - GAIN_TOLERANCE - chance, (expected, missing)
    assert missing <= most + GAIN_TOLERANCE + chance, (expected, missing)
