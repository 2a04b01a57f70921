"""Entries coded with the step that one knob of the whole model gives each of them."""

from __future__ import annotations

import math

from ders_core.codecs.curvature import Curvature
from ders_core.codecs.delta_entries import MatrixEntries
from ders_core.codecs.fitting.compensated import succession_of
from ders_core.codecs.fitting.entries import Coded, Entries
from ders_core.codecs.fitting.rounding import Nearest, Rounding, Unbiased
from ders_core.codecs.fitting.sensitive_steps import coarse_enough, steps_by_curvature
from ders_core.later import torch

HALF = Nearest(0.5)

SURELY = 5.0
"""Bits an entry from which on making up for errors pays. With coarse steps it may not: what columns
take over from others then costs more bits than it saves."""


def coded_by_knob(
    matrix: torch.Tensor,
    knob: float,
    curvature: Curvature,
    moments: torch.Tensor | None,
    by_chance: Unbiased | None,
) -> tuple[Entries, Coded]:
    """matrix: float32 `[out, in]` on the CPU. moments: E[x xᵀ] of the inputs, where later columns
    may make up for errors; None, or a diagonal, where not. by_chance: instead of the nearest."""
    entries, coded = _coded(matrix, knob, curvature, by_chance or HALF)
    if moments is None or moments.dim() == 1 or not curvature.total > 0 or not matrix.numel():
        return entries, coded
    succession = succession_of(moments)
    left = succession.left(curvature)
    steps = coarse_enough(steps_by_curvature(left), matrix, knob)
    others = Entries(MatrixEntries(matrix), steps)
    compensated = others.coded_with(knob, succession.rounding(curvature, steps))
    if 8 * entries.stream_bytes(coded.counts) > SURELY * matrix.numel():
        return others, compensated
    merits = [
        _merit(matrix, each, codes, knob, curvature, moments)
        for each, codes in ((entries, coded), (others, compensated))
    ]
    return (entries, coded) if merits[0] <= merits[1] else (others, compensated)


def _coded(
    matrix: torch.Tensor, knob: float, curvature: Curvature, rounding: Rounding
) -> tuple[Entries, Coded]:
    steps = coarse_enough(steps_by_curvature(curvature), matrix, knob)
    entries = Entries(MatrixEntries(matrix), steps)
    return entries, entries.coded_with(knob, rounding)


def _merit(
    matrix: torch.Tensor,
    entries: Entries,
    coded: Coded,
    knob: float,
    curvature: Curvature,
    moments: torch.Tensor,
) -> float:
    """The less the better: cost plus bits, at the price of a bit in the whole model. Fine steps
    cost knob²/24 an entry, which doubling the knob makes four times as much, and saves a bit."""
    error = entries.decoded(coded, entries.levels(coded)).sub_(matrix)
    bits = 8 * entries.stream_bytes(coded.counts)
    return curvature.cost(error, moments) + knob**2 / 12 * math.log(2) * bits
