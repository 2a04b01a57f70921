"""Entries coded with about the smallest step with which they take no more than some bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ders_core.codecs.codec import EncodeContext
from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.steps import Steps
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.delta_entries import Entries as DeltaEntries
from ders_core.codecs.fitting.by_knob import HALF, SURELY
from ders_core.codecs.fitting.compensated import succession_of
from ders_core.codecs.fitting.entries import Coded, Entries
from ders_core.codecs.fitting.rounding import Apart, Nearest
from ders_core.codecs.fitting.sensitive_steps import steps_by_curvature, steps_by_inputs
from ders_core.codecs.fitting.step_search import corrected, first_guess, within
from ders_core.later import torch

NEAREST = tuple(Nearest(threshold) for threshold in (0.5, 0.44, 0.38, 0.32))
"""The one with the least error is taken."""

MOST_FOR_FACTORS = 0.25
"""Share of the bytes that factors of rows and columns may take."""


@dataclass(frozen=True)
class WithinBytes:
    """Makes streams of at most `limit` bytes. is_sensitive: whether steps follow what errors cost,
    or are even. write: makes the stream of codes."""

    deltas: DeltaEntries
    context: EncodeContext
    limit: int
    is_sensitive: bool
    write: Callable[[Entries, Coded], torch.Tensor]

    def apart(self, roundings: Sequence[Apart] = NEAREST) -> torch.Tensor:
        """Each entry is rounded by itself."""
        entries = Entries(self.deltas, self._steps(self.context.curvature))
        return within(entries, roundings, self.limit, lambda coded: self.write(entries, coded))

    def compensated(self) -> torch.Tensor:
        """Columns make up for the errors of those before them, where moments of inputs are known
        and that costs less than rounding to the nearest."""
        moments, count = self.context.moments, self.deltas.size
        if moments is None or moments.dim() == 1 or not count:
            return self.apart()
        costs = self.context.curvature
        if costs is None or not costs.total > 0:
            costs = _costs_of_inputs(moments, self.deltas.shape[0])
        made_up_for = self._made_up_for(costs, moments)
        if 8 * self.limit > SURELY * count:
            return made_up_for
        plain = self.apart()
        losses = [self._loss(stream, costs, moments) for stream in (plain, made_up_for)]
        return plain if losses[0] <= losses[1] else made_up_for

    def _made_up_for(self, costs: Curvature, moments: torch.Tensor) -> torch.Tensor:
        succession = succession_of(moments)
        steps = self._steps(succession.left(costs))
        entries = Entries(self.deltas, steps)
        step, _ = first_guess(entries, (HALF,), self.limit)
        rounding = succession.rounding(costs, steps or Steps.even(self.deltas.shape))
        return corrected(
            entries, rounding, step, self.limit, lambda coded: self.write(entries, coded)
        )

    def _loss(self, stream: torch.Tensor, costs: Curvature, moments: torch.Tensor) -> float:
        decoded = level_stream.read(stream, self.deltas.shape).matrix()
        return float(costs.cost(decoded.sub_(self.deltas.matrix), moments))

    def _steps(self, curvature: Curvature | None) -> Steps | None:
        """Factors that leave most of the bytes for the codes: of columns alone or none, if those
        of rows would take too many."""
        if not self.is_sensitive:
            return None
        shape, importance = self.deltas.shape, self.context.importance
        even = Steps.even(shape)
        if curvature is not None:
            best = steps_by_curvature(curvature)
        elif importance is not None:
            best = steps_by_inputs(importance, shape[0])
        else:
            return even
        tried = [best, Steps(even.rows, best.columns), even]
        most = MOST_FOR_FACTORS * self.limit
        return next((steps for steps in tried if level_stream.factor_bytes(steps) <= most), even)


def _costs_of_inputs(moments: torch.Tensor, out: int) -> Curvature:
    """What errors cost where inputs alone are known, but for a factor: all rows the same."""
    columns = moments.diagonal().float()
    return Curvature(columns, (columns.sum() / out).expand(out))
