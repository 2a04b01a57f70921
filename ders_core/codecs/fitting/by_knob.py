"""Entries coded with the step that one knob of the whole model gives each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from ders_core.codecs.coding.steps import Steps
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.delta_entries import MatrixEntries
from ders_core.codecs.fitting.compensated import Compensated, succession_of
from ders_core.codecs.fitting.entries import Coded, Entries
from ders_core.codecs.fitting.rounding import Nearest, Unbiased
from ders_core.codecs.fitting.sensitive_steps import RowsInSteps, steps_by_curvature
from ders_core.codecs.tried_matrix import TriedDelta
from ders_core.later import torch

HALF = Nearest(0.5)

SURELY = 5.0
"""Bits an entry from which on making up for errors pays. With coarse steps it may not: what columns
take over from others then costs more bits than it saves."""


def coded_by_knob(
    delta: TriedDelta,
    knob: float,
    curvature: Curvature,
    moments: torch.Tensor | None,
    by_chance: Unbiased | None,
) -> tuple[Entries, Coded]:
    """moments: E[x xᵀ] of the inputs, where later columns may make up for errors; None, or a
    diagonal, where not. by_chance: instead of the nearest."""
    known = delta.once("knobs", lambda: _Known(delta.matrix, curvature))
    entries = known.plain.entries(knob)
    coded = entries.coded_with(knob, by_chance or HALF)
    matrix = known.matrix
    if moments is None or moments.dim() == 1 or not curvature.total > 0 or not matrix.numel():
        return entries, coded
    making_up = delta.once("making up", lambda: _MakingUp(known, moments))
    others = making_up.steps.entries(knob)
    assert others.steps is not None, "they follow sensitivity"
    compensated = others.coded_with(knob, making_up.rounding(others.steps))
    if 8 * entries.stream_bytes(coded.counts_within) > SURELY * matrix.numel():
        return others, compensated
    merits = [
        _merit(matrix, each, codes, knob, curvature, moments)
        for each, codes in ((entries, coded), (others, compensated))
    ]
    return (entries, coded) if merits[0] <= merits[1] else (others, compensated)


@dataclass
class _SteppedMatrix:
    """A matrix `[out, in]` float32 on the CPU in steps that follow sensitivity, for any knob."""

    matrix: torch.Tensor
    rows: RowsInSteps
    last: Entries | None = None

    @classmethod
    def of(cls, matrix: torch.Tensor, curvature: Curvature) -> _SteppedMatrix:
        return cls(matrix, RowsInSteps.of(matrix, steps_by_curvature(curvature)))

    def entries(self, knob: float) -> Entries:
        """With most knobs the same again, which know their arrangement."""
        steps = self.rows.coarse_enough(knob)
        if self.last is None or self.last.steps is not steps:
            self.last = Entries(MatrixEntries(self.matrix), steps)
        return self.last


@dataclass(frozen=True)
class _Known:
    """What all knobs have in common on a matrix `[out, in]` float32 on the CPU."""

    matrix: torch.Tensor
    curvature: Curvature

    @cached_property
    def plain(self) -> _SteppedMatrix:
        return _SteppedMatrix.of(self.matrix, self.curvature)


@dataclass
class _MakingUp:
    """The same where later columns make up for errors."""

    known: _Known
    moments: torch.Tensor
    last: tuple[Steps, Compensated] | None = field(default=None, init=False)

    @cached_property
    def steps(self) -> _SteppedMatrix:
        left = succession_of(self.moments).left(self.known.curvature)
        return _SteppedMatrix.of(self.known.matrix, left)

    def rounding(self, steps: Steps) -> Compensated:
        if self.last is None or self.last[0] is not steps:
            rounding = succession_of(self.moments).rounding(self.known.curvature, steps)
            self.last = steps, rounding
        return self.last[1]


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
    bits = 8 * entries.stream_bytes(coded.counts_within)
    return float(curvature.cost(error, moments)) + knob**2 / 12 * math.log(2) * bits
