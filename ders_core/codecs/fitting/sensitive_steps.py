"""Steps that follow sensitivity: small where an error costs much.

Unbiased rounding costs ½ C s²/6 an entry where steps are fine, and log2(1/s) bits, so all bytes
cost least with s ∝ C^(−½) (reverse water-filling; Cover and Thomas, ch. 10). C is the product of a
row's and a column's number, and so is the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.coding.steps import LARGEST, PER_OCTAVE, SMALLEST, Steps
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.fitting.rounding import EXACT_CODES
from ders_core.compute.pieces import CHUNK, row_pieces
from ders_core.later import np, torch

LEAST_SHARE = 0.03
"""Of the mean curvature of all rows (columns): no row (column) is taken to be less sensitive. With
far larger errors there than elsewhere KL no longer grows with their squares alone."""

MUCH_COARSER, MOST_COARSE_ROWS = 8.0, 0.5
"""Share of rows whose steps may be made more than so many times coarser: with more of them, the
knob is too small."""

LEAST = 2.0**-90


def steps_by_curvature(curvature: Curvature) -> Steps:
    """In the units of C^(−½), which one knob for the whole model multiplies."""
    total = curvature.total
    if not total > LEAST:
        return Steps.even((curvature.rows.numel(), curvature.columns.numel()))
    return Steps(_exponents(curvature.rows), _exponents(curvature.columns.double() / total))


@dataclass(frozen=True)
class RowsInSteps:
    """largest: the largest magnitude of each row of a matrix in units of these steps, float32
    `[out]`."""

    steps: Steps
    largest: torch.Tensor

    @classmethod
    def of(cls, matrix: torch.Tensor, steps: Steps) -> RowsInSteps:
        """matrix: float32 `[out, in]` on the CPU."""
        if not matrix.numel():
            return cls(steps, torch.zeros(len(matrix)))
        rows, columns = steps.inverse()
        largest = [
            (matrix[part] * rows[part].unsqueeze(1)).mul_(columns).abs_().amax(1)
            for part in row_pieces(matrix.shape, CHUNK)
        ]
        return cls(steps, torch.cat(largest))

    def coarse_enough(self, knob: float) -> Steps:
        """Steps with which no row has multiples of the knob beyond `EXACT_CODES`, which would share
        codes and have large errors: its steps are made coarser, unless most rows are far beyond. A
        model's most frequent tokens have such rows in the embedding, and all rows may have a column
        with large entries."""
        finest = float(EXACT_CODES - 1) * knob
        beyond = self.largest > finest
        far_beyond = self.largest > MUCH_COARSER * finest
        if not beyond.any() or float(far_beyond.double().mean()) > MOST_COARSE_ROWS:
            return self.steps
        ratio = self.largest.double() / finest
        more = torch.log2(ratio).clamp_min_(0).mul_(PER_OCTAVE).ceil_().long().numpy()
        rows = np.clip(self.steps.rows + more, SMALLEST, LARGEST)
        return Steps(rows, self.steps.columns)


def steps_by_inputs(importance: torch.Tensor, out: int) -> Steps:
    """Where only E[x_j²] `[in]` is known: rows are alike, and columns 1 on average."""
    power = importance.double().clamp_min(0)
    mean = float(power.mean()) if power.numel() else 0.0
    if not mean > 0:
        return Steps.even((out, power.numel()))
    return Steps(np.zeros(out, dtype=np.int64), _exponents(power / mean))


def _exponents(sensitivity: torch.Tensor) -> np.ndarray:
    """PER_OCTAVE · log2 of sensitivity^(−½), rounded: int64 `[n]`."""
    numbers = sensitivity.double()
    least = max(LEAST_SHARE * float(numbers.mean()), LEAST)
    exponents = torch.log2(numbers.clamp_min(least)) * (-PER_OCTAVE / 2)
    rounded: np.ndarray = exponents.round_().long().clamp_(SMALLEST, LARGEST).numpy()
    return rounded
