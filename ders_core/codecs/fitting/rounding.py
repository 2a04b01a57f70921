"""How values become multiples of a step: integer codes, and the multiples that they stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from ders_core.codecs.coding.prng import draw_keys, random_uniform, uniform_of
from ders_core.codecs.fitting.counting import add_up
from ders_core.compute import kernels
from ders_core.compute.pieces import largest_magnitude, pieces
from ders_core.later import np, torch

EXACT_CODES = 4096
PER_OCTAVE = 16
"""Multiples beyond EXACT_CODES share codes, this many to a doubling, so that outliers do not fill
the table."""

FARTHEST = EXACT_CODES + 64 * PER_OCTAVE
"""The largest code; the smallest is −FARTHEST."""

CODES = 2 * FARTHEST + 1

BEYOND = 0xFFFF
"""Stands in loops for codes beyond EXACT_CODES."""

CHUNK = 1 << 19
"""Values at a time."""

Piece = tuple["torch.Tensor", "np.ndarray"]
"""Values float32 `[n]`, and their codes uint16 `[n]`."""


class Rounding(ABC):
    """Pure: the same matrix and step give the same codes.

    rows: how many are rounded at once, at least, if a matrix has so many. aim, enough: shares of
    the bytes allowed that a step is corrected to, and from which on it is not.
    """

    rows: ClassVar[int] = 1
    aim: ClassVar[float]
    enough: ClassVar[float]

    @abstractmethod
    def coded(self, values: torch.Tensor, step: float, begin: int) -> np.ndarray:
        """Codes uint16 `[n]`, increased by FARTHEST. values: float32 `[n]`. begin: the place of the
        first one in the whole matrix."""

    @abstractmethod
    def levels(
        self, entries: Callable[[], Iterable[Piece]], counts: np.ndarray, step: float
    ) -> torch.Tensor:
        """What the codes that occur are decoded as, float32, in ascending order of codes.

        entries: all of them, piece by piece. counts: how often each code occurs, `[CODES]`.
        """


class Apart(Rounding):
    """Each value is rounded by itself.

    sample: how many values tell the step to begin with. coarsest: log2 of the largest step, in
    largest values.
    """

    sample: ClassVar[int]
    coarsest: ClassVar[float]

    @abstractmethod
    def codes(self, values: torch.Tensor, step: float, begin: int) -> torch.Tensor:
        """int32 codes of float32 values `[n]`, on the CPU; 0 is zero's. begin: the place of the
        first value in the whole matrix."""

    def coded(self, values: torch.Tensor, step: float, begin: int) -> np.ndarray:
        codes = np.empty(values.numel(), np.uint16)
        if not kernels.takes(values):
            for piece in pieces(values.numel(), CHUNK):
                of_piece = self.codes(values[piece], step, begin + piece.start)
                codes[piece] = of_piece.add_(FARTHEST).numpy()
            return codes
        if self._round(values.numpy(), np.float32(step), begin, codes):
            beyond = torch.from_numpy(np.flatnonzero(codes == BEYOND))
            far = self._beyond(values[beyond], step, begin + beyond)
            codes[beyond.numpy()] = far.add_(FARTHEST).numpy()
        return codes

    @abstractmethod
    def _round(self, values: np.ndarray, step: np.float32, begin: int, codes: np.ndarray) -> int:
        """Fill codes with a loop of `compute.kernels.multiples`; how many are BEYOND."""

    @abstractmethod
    def _beyond(self, values: torch.Tensor, step: float, places: torch.Tensor) -> torch.Tensor:
        """int32 codes of the values at these places, where multiples share codes."""


@dataclass(frozen=True)
class Nearest(Apart):
    """To the nearest multiple; a level is the mean of the values that became it (Lloyd 1957).

    threshold: added before the fraction is cut: the smaller, the wider the interval that becomes
    zero."""

    aim: ClassVar[float] = 1.0
    enough: ClassVar[float] = 0.0
    sample: ClassVar[int] = 1 << 17
    coarsest: ClassVar[float] = 2.0

    threshold: float

    def codes(self, values: torch.Tensor, step: float, begin: int) -> torch.Tensor:
        ratio = (values.abs() / step).add_(self.threshold)
        codes = ratio.clamp_max(EXACT_CODES).to(torch.int32)
        far = (ratio > EXACT_CODES).nonzero().flatten()
        if far.numel():
            octaves = torch.log2(ratio[far].double() / EXACT_CODES) * PER_OCTAVE
            codes[far] = EXACT_CODES + octaves.clamp(0, FARTHEST - EXACT_CODES).to(torch.int32)
        return torch.where(values < 0, -codes, codes)

    def _round(self, values: np.ndarray, step: np.float32, begin: int, codes: np.ndarray) -> int:
        from ders_core.compute.kernels.multiples import nearest

        beyond: int = nearest(
            values, step, np.float32(self.threshold), FARTHEST, EXACT_CODES, codes
        )
        return beyond

    def _beyond(self, values: torch.Tensor, step: float, places: torch.Tensor) -> torch.Tensor:
        return self.codes(values, step, 0)

    def levels(
        self, entries: Callable[[], Iterable[Piece]], counts: np.ndarray, step: float
    ) -> torch.Tensor:
        largest = max((largest_magnitude(values) for values, _ in entries()), default=0.0)
        totals = np.zeros(len(counts))
        for values, codes in entries():
            add_up(values, codes, largest or 1.0, totals)
        occurring = np.flatnonzero(counts)
        means = totals[occurring] / counts[occurring] * largest
        return torch.from_numpy(means.astype(np.float32))


@dataclass(frozen=True)
class Unbiased(Apart):
    """Upwards with the probability of the remainder, so that the mean of what a value becomes is
    the value (QSGD, arXiv 1610.02132). Chance is drawn from the seed and a value's place."""

    aim: ClassVar[float] = 0.997
    enough: ClassVar[float] = 0.99
    sample: ClassVar[int] = 1 << 20
    coarsest: ClassVar[float] = 40.0

    seed: int

    def codes(self, values: torch.Tensor, step: float, begin: int) -> torch.Tensor:
        luck = random_uniform(values.numel(), self.seed, begin=begin)
        ratio = values / step
        far = (ratio.abs() > EXACT_CODES).nonzero().flatten()
        codes = (ratio + luck).floor_().clamp_(-EXACT_CODES, EXACT_CODES).to(torch.int32)
        if far.numel():
            codes[far] = _far_codes(ratio[far].double(), luck[far].double())
        return codes

    def _round(self, values: np.ndarray, step: np.float32, begin: int, codes: np.ndarray) -> int:
        from ders_core.compute.kernels.multiples import unbiased

        numbers = *draw_keys(self.seed), begin, FARTHEST, EXACT_CODES
        beyond: int = unbiased(values, step, *numbers, codes)
        return beyond

    def _beyond(self, values: torch.Tensor, step: float, places: torch.Tensor) -> torch.Tensor:
        return _far_codes((values / step).double(), uniform_of(places, self.seed).double())

    def levels(
        self, entries: Callable[[], Iterable[Piece]], counts: np.ndarray, step: float
    ) -> torch.Tensor:
        occurring = torch.from_numpy(np.flatnonzero(counts))
        return (multiples(occurring - FARTHEST) * step).float()


def multiples(codes: torch.Tensor) -> torch.Tensor:
    """The multiples of the step that integer codes stand for, float64."""
    beyond = (codes.abs() - EXACT_CODES).clamp_min(0)
    near = codes.abs().clamp_max(EXACT_CODES).double()
    return near * torch.exp2(beyond.double() / PER_OCTAVE) * codes.sign()


def _far_codes(ratio: torch.Tensor, luck: torch.Tensor) -> torch.Tensor:
    """int32 codes beyond EXACT_CODES, up or down so that their mean is the ratio, float64."""
    size = ratio.abs()
    below = (torch.log2(size / EXACT_CODES) * PER_OCTAVE).floor_()
    below = EXACT_CODES + below.clamp_(0, FARTHEST - EXACT_CODES - 1).long()
    low, high = multiples(below), multiples(below + 1)
    above = luck < (size - low) / (high - low)
    return ((below + above) * ratio.sign().long()).to(torch.int32)
