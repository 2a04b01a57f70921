"""All entries of a matrix, and the stream that their codes become."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.coding import classed_stream, even_stream
from ders_core.codecs.coding.steps import Steps
from ders_core.codecs.fitting.rounding import EXACT_CODES, FARTHEST, Rounding
from ders_core.later import np, torch


@dataclass(frozen=True)
class Entries:
    """values: float32 `[n]` on the CPU, in units of their steps. steps: None where all are
    alike."""

    values: torch.Tensor
    steps: Steps | None = None

    def coded_with(self, step: float, rounding: Rounding) -> Coded:
        """All entries with this step."""
        classes = None if self.steps is None else self.steps.classes
        codes, counts = rounding.coded(self.values, step, classes, self.class_count)
        return Coded(codes, counts, step, rounding)

    @property
    def class_count(self) -> int:
        return 1 if self.steps is None else self.steps.class_count

    def stream_bytes(self, counts: np.ndarray, slack: float = 1.0) -> float:
        """counts: `[classes, CODES]`."""
        if self.steps is None:
            return even_stream.stream_bytes(counts[0], slack)
        return classed_stream.stream_bytes(self.steps, counts, slack)

    def write(
        self, levels: torch.Tensor, numbers: torch.Tensor, counts: np.ndarray
    ) -> torch.Tensor:
        """The stream. levels, counts: of the codes that occur alone. numbers: int32 `[n]`."""
        if self.steps is None:
            return even_stream.write(levels.numpy(), numbers.numpy(), counts[0])
        return classed_stream.write(self.steps, levels.numpy(), numbers.numpy(), counts)


@dataclass(frozen=True)
class Coded:
    """codes: int32 `[n]`, increased by FARTHEST. counts: int64 `[classes, CODES]`."""

    codes: torch.Tensor
    counts: torch.Tensor
    step: float
    rounding: Rounding

    @property
    def far_share(self) -> float:
        """Of entries whose code stands for several multiples."""
        near = self.counts[:, FARTHEST - EXACT_CODES : FARTHEST + EXACT_CODES + 1].sum()
        total = self.counts.sum()
        return 1 - float(near / total) if total else 0.0
