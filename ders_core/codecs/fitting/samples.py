"""Values that tell what a step would cost, before all entries are coded with it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from ders_core.codecs.coding import level_stream
from ders_core.codecs.fitting.entries import Entries
from ders_core.codecs.fitting.rounding import (
    CODES,
    EXACT_CODES,
    FARTHEST,
    PER_OCTAVE,
    Apart,
    Nearest,
    Unbiased,
)
from ders_core.compute import kernels
from ders_core.compute.pieces import CHUNK, pieces
from ders_core.later import np, torch


@dataclass(frozen=True)
class Trial:
    """size: bytes of all entries. error: computes the squared error of the sample, which costs as
    much again and is seldom asked for."""

    size: float
    error: Callable[[], float]


class Sample(ABC):
    """typical: the median magnitude of what is not zero, as a share of the largest one."""

    typical: float

    @abstractmethod
    def try_out(self, step: float, rounding: Apart) -> Trial:
        """step: in largest values."""


def sample_of(entries: Entries, rounding: Apart) -> Sample:
    """Each n-th entry, as many as this kind of rounding wants."""
    stride = -(-entries.values.numel() // rounding.sample)
    if isinstance(rounding, Unbiased):
        return _Counted(entries)
    if entries.steps is None and isinstance(rounding, Nearest):
        return _Sorted(entries, stride)
    return _Spread(entries, stride)


KEPT_BITS = 8
"""Of a magnitude's fraction, in a histogram."""

SHIFT = 23 - KEPT_BITS

CERTAIN = 0.5
"""Codes that fewer entries are expected to have do not occur."""


class _Counted(Sample):
    """A histogram of all magnitudes, and what chance makes of them on average: a trial need not
    draw. Signs are taken to be even."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        counts = magnitudes(entries)
        together = counts.sum(0)
        self._largest = entries.largest
        usual = np.flatnonzero(together[1:]) + 1
        half = np.searchsorted(np.cumsum(together[usual]), together[usual].sum() / 2)
        middle = float(_of_bins(usual[[half]])[0]) / self._largest if len(usual) else 1.0
        self.typical = min(middle, 1.0)
        self._classes, bins = np.nonzero(counts)
        self._counts = counts[self._classes, bins].astype(np.float64)
        self._values = np.minimum(_of_bins(bins) / self._largest, 1.0)

    def try_out(self, step: float, rounding: Apart) -> Trial:
        ratio = self._values / step
        beyond = np.log2(np.maximum(ratio / EXACT_CODES, 1.0)) * PER_OCTAVE
        place = np.minimum(ratio, EXACT_CODES) + np.minimum(beyond, FARTHEST - EXACT_CODES)
        below = place.astype(np.int64)
        above = self._counts * (place - below)
        width = int(below.max()) + 2
        cells, size = self._classes * width + below, self._entries.class_count * width
        expected = np.bincount(cells, self._counts - above, minlength=size)
        expected[1:] += np.bincount(cells, above, minlength=size)[:-1]
        sizes = expected.reshape(-1, width)
        sides = sizes[:, 1:] / 2
        counts = np.concatenate([sides, sizes[:, :1], sides], axis=1)
        counts[counts < CERTAIN] = 0
        return Trial(self._entries.stream_bytes(counts), lambda: math.nan)


def magnitudes(entries: Entries) -> np.ndarray:
    """How many magnitudes of each class have the same leading bits: int64
    `[classes, 2^(8 + KEPT_BITS)]`."""
    bits = entries.values.view(torch.int32)
    counts = np.zeros((entries.class_count, 1 << 8 + KEPT_BITS), dtype=np.int64)
    steps = entries.steps
    if kernels.takes(bits):
        from ders_core.compute.kernels.magnitudes import count_magnitudes

        classes = np.empty(0, np.uint8) if steps is None else steps.classes.numpy()
        count_magnitudes(bits.numpy().view(np.uint32), SHIFT, classes, counts)
        return counts
    for piece in pieces(bits.numel(), CHUNK):
        places = (bits[piece] & 0x7FFFFFFF).long() >> SHIFT
        if steps is not None:
            places += steps.classes[piece].long() * counts.shape[1]
        counts += torch.bincount(places, minlength=counts.size).view(counts.shape).numpy()
    return counts


def _of_bins(bins: np.ndarray) -> np.ndarray:
    """The middle of each bin, float64; 0 of the first."""
    middle = np.where(bins > 0, (bins << SHIFT) + (1 << SHIFT - 1), 0)
    found: np.ndarray = middle.astype(np.int32).view(np.float32).astype(np.float64)
    return found


class _Spread(Sample):
    """Values in their places, coded as all entries will be."""

    def __init__(self, entries: Entries, stride: int) -> None:
        self._entries = entries
        self._values = entries.values[::stride] / entries.largest
        steps = entries.steps
        self._classes = None if steps is None else steps.classes[::stride].contiguous()
        self._grown = entries.values.numel() / self._values.numel()
        usual = self._values[self._values != 0].abs()
        self.typical = float(usual.median()) if usual.numel() else 1.0

    def try_out(self, step: float, rounding: Apart) -> Trial:
        codes, counts = rounding.coded(self._values, step, self._classes, self._entries.class_count)
        together = counts.sum(0)
        occurring = together.nonzero().flatten()

        def error() -> float:
            levels = torch.zeros(CODES)
            levels[occurring] = rounding.levels(self._values, codes, together, step)
            return float((self._values - levels.index_select(0, codes)).square().sum())

        grown = counts[:, occurring].double().numpy() * self._grown
        return Trial(self._entries.stream_bytes(grown), error)


class _Sorted(Sample):
    """Values in ascending order with their running sums: what `Nearest` gives one code is a stretch
    of them, so a trial looks up where codes begin."""

    def __init__(self, entries: Entries, stride: int) -> None:
        values = entries.values[::stride] / entries.largest
        self._sorted = np.sort(values.numpy()).astype(np.float64)
        self._sums = np.concatenate([[0.0], self._sorted.cumsum()])
        self._energy = float(np.square(self._sorted).sum())
        self._grown = entries.values.numel() / len(self._sorted)
        magnitudes = np.abs(self._sorted[self._sorted != 0])
        self.typical = float(np.median(magnitudes)) if len(magnitudes) else 1.0

    def try_out(self, step: float, rounding: Apart) -> Trial:
        assert isinstance(rounding, Nearest)
        ends = (_ends(1 / step + rounding.threshold) - rounding.threshold) * step
        below = np.searchsorted(self._sorted, -ends[::-1], "right")
        above = np.searchsorted(self._sorted, ends, "left")
        edges = np.concatenate([[0], below, above, [len(self._sorted)]])
        counts = np.diff(edges)
        filled = counts > 0
        counts = counts[filled]

        def error() -> float:
            totals = np.diff(self._sums[edges])[filled]
            return self._energy - float((totals * totals / counts).sum())

        return Trial(level_stream.stream_bytes(None, counts[None] * self._grown), error)


def _ends(largest: float) -> np.ndarray:
    """The ratios up to `largest` at which `Nearest` goes over to the next code, float64."""
    near = np.arange(1.0, min(largest, EXACT_CODES) + 1)
    octaves = np.arange(1, FARTHEST - EXACT_CODES + 1) / PER_OCTAVE
    far = EXACT_CODES * 2.0**octaves if largest > EXACT_CODES else octaves[:0]
    return np.concatenate([near, far])
