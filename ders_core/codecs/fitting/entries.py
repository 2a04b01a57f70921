"""All entries of a matrix, and the stream that their codes become."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.coding.steps import Steps
from ders_core.codecs.fitting.rounding import EXACT_CODES, FARTHEST, Rounding
from ders_core.compute.pieces import largest_magnitude
from ders_core.later import np, torch


@dataclass(frozen=True)
class Entries:
    """matrix: float32 `[out, in]` on the CPU, in units of its steps. steps: None where all are
    alike."""

    matrix: torch.Tensor
    steps: Steps | None = None

    @classmethod
    def of(cls, matrix: torch.Tensor, steps: Steps | None) -> Entries:
        """matrix: float32 `[out, in]` on the CPU, as it is."""
        scaled = matrix if steps is None else steps.divided(matrix)
        return cls(scaled.contiguous(), steps)

    @property
    def values(self) -> torch.Tensor:
        """float32 `[out · in]`."""
        return self.matrix.view(-1)

    @cached_property
    def largest(self) -> float:
        """The largest magnitude; 0 if there are no entries."""
        return largest_magnitude(self.values)

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
        return level_stream.stream_bytes(self.steps, counts, slack)

    def decoded(self, coded: Coded, levels: torch.Tensor) -> torch.Tensor:
        """What codes with these levels give back, float32 `[out, in]`, in the matrix's own units.
        levels: of the codes that occur."""
        occurring = coded.counts.sum(0).nonzero().flatten()
        of_codes = torch.zeros(coded.counts.shape[1])
        of_codes[occurring] = levels
        decoded = of_codes.index_select(0, coded.codes).view(self.matrix.shape)
        return decoded if self.steps is None else self.steps.multiply_(decoded)

    @cached_property
    def _arrangement(self) -> Arrangement:
        out, width = self.matrix.shape
        return Arrangement((out, width), self.steps)

    def write(self, coded: Coded, levels: torch.Tensor) -> torch.Tensor:
        """The stream. levels: float32, of the codes that occur."""
        counts = coded.counts.numpy()
        together = counts.sum(0)
        occurring = np.flatnonzero(together)
        numbers = np.zeros(len(together), dtype=np.uint16)
        numbers[occurring] = np.arange(len(occurring))
        common = int(together[occurring].argmax()) if len(occurring) else 0
        symbols = self._arrangement.symbols(coded.codes, numbers)
        of_classes = counts[:, occurring]
        return level_stream.write(self.steps, levels.numpy(), common, symbols, of_classes)


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

    def levels(self, values: torch.Tensor) -> torch.Tensor:
        """What the codes that occur are decoded as, float32, in ascending order of codes. values:
        that were coded."""
        return self.rounding.levels(values, self.codes, self.counts.sum(0), self.step)
