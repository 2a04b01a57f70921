"""How values become multiples of a step: integer codes, and the multiples that they stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ders_core.codecs.coding.prng import draw_keys, random_uniform, uniform_of
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import largest_magnitude, pieces
from ders_core.later import np, torch

EXACT_CODES = 4096
PER_OCTAVE = 16
"""Multiples beyond EXACT_CODES share codes, this many to a doubling, so that outliers do not fill
the table."""

FARTHEST = EXACT_CODES + 64 * PER_OCTAVE
"""The largest code; the smallest is −FARTHEST."""

CODES = 2 * FARTHEST + 1

CHUNK = 1 << 19
"""Values at a time."""


class Rounding(ABC):
    """Pure: the same matrix and step give the same codes."""

    @abstractmethod
    def coded(
        self, values: torch.Tensor, step: float, classes: torch.Tensor | None, class_count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(codes int32 `[n]`, increased by FARTHEST; how often each occurs in each class, int64
        `[class_count, CODES]`). values: float32 `[n]`, of the whole matrix. classes: uint8 `[n]`;
        None if there is one."""

    @abstractmethod
    def levels(
        self, values: torch.Tensor, codes: torch.Tensor, counts: torch.Tensor, step: float
    ) -> torch.Tensor:
        """What the codes that occur are decoded as, float32, in ascending order of codes.

        codes: int64 or int32 `[n]`, increased by FARTHEST. counts: how often each occurs,
        `[2·FARTHEST + 1]`.
        """


class Apart(Rounding):
    """Each value is rounded by itself.

    aim, enough: shares of the bytes allowed that a step is corrected to, and from which on it is
    not. sample: how many values tell the step to begin with. coarsest: log2 of the largest step, in
    largest values.
    """

    aim: ClassVar[float]
    enough: ClassVar[float]
    sample: ClassVar[int]
    coarsest: ClassVar[float]

    @abstractmethod
    def codes(self, values: torch.Tensor, step: float, begin: int) -> torch.Tensor:
        """int32 codes of float32 values `[n]`, on the CPU; 0 is zero's. begin: the place of the
        first value in the whole matrix."""

    def coded(
        self, values: torch.Tensor, step: float, classes: torch.Tensor | None, class_count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not kernels.takes(values, *([] if classes is None else [classes])):
            return self._coded_plainly(values, step, classes, class_count)
        codes = fresh(values.shape, torch.int32)
        counts = torch.zeros(class_count, CODES, dtype=torch.int64)
        of_places = fresh(codes.shape, torch.uint8).zero_() if classes is None else classes
        loop, numbers = self._loop()
        arrays = of_places.numpy(), codes.numpy(), counts.numpy()
        if loop(values.numpy(), np.float32(step), *numbers, EXACT_CODES, *arrays):
            beyond = (codes < 0).nonzero().flatten()
            codes[beyond] = self._beyond(values[beyond], step, beyond).add_(FARTHEST)
            places = of_places[beyond].long() * CODES + codes[beyond]
            counts += torch.bincount(places, minlength=counts.numel()).view_as(counts)
        return codes, counts

    def _coded_plainly(
        self, values: torch.Tensor, step: float, classes: torch.Tensor | None, class_count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as `coded`, without compiled loops."""
        codes = fresh(values.shape, torch.int32)
        counts = torch.zeros(class_count * CODES, dtype=torch.int64)
        for piece in pieces(values.numel(), CHUNK):
            codes[piece] = self.codes(values[piece], step, piece.start).add_(FARTHEST)
            places = codes[piece] if classes is None else classes[piece].long() * CODES
            if classes is not None:
                places += codes[piece]
            counts += torch.bincount(places, minlength=counts.numel())
        return codes, counts.view(class_count, CODES)

    @abstractmethod
    def _loop(self) -> tuple[Callable[..., int], tuple[np.number, ...]]:
        """One of `compute.kernels.multiples`, and the numbers that it takes after the step."""

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

    def _loop(self) -> tuple[Callable[..., int], tuple[np.number, ...]]:
        from ders_core.compute.kernels.multiples import nearest

        return nearest, (np.float32(self.threshold),)

    def _beyond(self, values: torch.Tensor, step: float, places: torch.Tensor) -> torch.Tensor:
        return self.codes(values, step, 0)

    def levels(
        self, values: torch.Tensor, codes: torch.Tensor, counts: torch.Tensor, step: float
    ) -> torch.Tensor:
        largest = largest_magnitude(values)
        shares = values.double().div_(largest or 1.0)
        total = torch.bincount(codes, shares, minlength=counts.numel())
        occurring = counts.nonzero().flatten()
        return (total[occurring] / counts[occurring] * largest).float()


@dataclass(frozen=True)
class Unbiased(Apart):
    """Upwards with the probability of the remainder, so that the mean of what a value becomes is
    the value (QSGD, arXiv 1610.02132). Chance is drawn from the seed and a value's place."""

    aim: ClassVar[float] = 0.997
    enough: ClassVar[float] = 0.99
    sample: ClassVar[int] = 1 << 17
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

    def _loop(self) -> tuple[Callable[..., int], tuple[np.number, ...]]:
        from ders_core.compute.kernels.multiples import unbiased

        return unbiased, draw_keys(self.seed)

    def _beyond(self, values: torch.Tensor, step: float, places: torch.Tensor) -> torch.Tensor:
        return _far_codes((values / step).double(), uniform_of(places, self.seed).double())

    def levels(
        self, values: torch.Tensor, codes: torch.Tensor, counts: torch.Tensor, step: float
    ) -> torch.Tensor:
        return (multiples(counts.nonzero().flatten() - FARTHEST) * step).float()


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
