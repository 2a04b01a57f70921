"""Values that tell what a step would cost, before all entries are coded with it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.fitting.counting import arrange_and_count
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
from ders_core.compute.pieces import largest_magnitude
from ders_core.later import np, torch


@dataclass(frozen=True)
class Trial:
    """size: bytes of all entries. error: computes the squared error of the sample, which costs as
    much again and is seldom asked for."""

    size: float
    error: Callable[[], float]


class Sample(ABC):
    """largest: the largest magnitude. typical: the median magnitude of what is not zero, as a share
    of the largest one."""

    largest: float
    typical: float

    @abstractmethod
    def try_out(self, step: float, rounding: Apart) -> Trial:
        """step: in largest values."""


def sample_of(entries: Entries, rounding: Apart) -> Sample | None:
    """Each n-th entry, about as many as this kind of rounding wants; None if all are 0."""
    stride = max(-(-entries.size // rounding.sample), 1)
    if isinstance(rounding, Unbiased):
        stride |= 1  # odd, so that all columns have their turn
        counts, largest = magnitudes(entries, stride)
        if not largest:
            counts, largest = magnitudes(entries, 1)
        grown = entries.size / max(int(counts.sum()), 1)
        return _Counted(entries, counts, grown, largest) if largest else None
    if not entries.largest:
        return None
    if entries.steps is None and isinstance(rounding, Nearest):
        return _Sorted(entries, stride)
    return _Spread(entries, stride)


KEPT_BITS = 8
"""Of a magnitude's fraction, in a histogram."""

SHIFT = 23 - KEPT_BITS

CERTAIN = 0.5
"""Codes that fewer entries are expected to have do not occur."""


class _Counted(Sample):
    """A histogram of magnitudes, and what chance makes of them on average: a trial need not draw.
    Signs are taken to be even."""

    def __init__(self, entries: Entries, counts: np.ndarray, grown: float, largest: float) -> None:
        """counts, largest: as of `magnitudes`. grown: how many entries each counted one is for."""
        self._entries, self.largest = entries, largest
        together = counts.sum(0)
        usual = np.flatnonzero(together[1:]) + 1
        half = np.searchsorted(np.cumsum(together[usual]), together[usual].sum() / 2)
        middle = float(_of_bins(usual[[half]])[0]) / self.largest if len(usual) else 1.0
        self.typical = min(middle, 1.0)
        self._classes, bins = np.nonzero(counts)
        self._counts = counts[self._classes, bins] * grown
        self._values = np.minimum(_of_bins(bins) / self.largest, 1.0)

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


def magnitudes(entries: Entries, stride: int) -> tuple[np.ndarray, float]:
    """How many magnitudes of each class have the same leading bits, int64
    `[classes, 2^(8 + KEPT_BITS)]`, and the largest one; of each n-th entry."""
    counts = np.zeros((entries.class_count, 1 << 8 + KEPT_BITS), dtype=np.int64)
    if not kernels.takes():
        values, classes = entries.every(stride)
        bits = values.view(torch.int32).numpy() & 0x7FFFFFFF
        np.add.at(counts, (classes.numpy(), bits >> SHIFT), 1)
        return counts, largest_magnitude(values)
    from ders_core.compute.kernels.scaled import count_magnitudes

    where, (rows, columns) = entries.arrangement, entries.factors
    deltas = entries.deltas.every(stride).numpy(), stride, rows.numpy(), columns.numpy()
    order = where.order, where.edges, where.kinds
    return counts, float(count_magnitudes(*deltas, SHIFT, *order, counts))


def _of_bins(bins: np.ndarray) -> np.ndarray:
    """The middle of each bin, float64; 0 of the first."""
    middle = np.where(bins > 0, (bins << SHIFT) + (1 << SHIFT - 1), 0)
    found: np.ndarray = middle.astype(np.int32).view(np.float32).astype(np.float64)
    return found


class _Spread(Sample):
    """Values in their places, coded as all entries will be."""

    def __init__(self, entries: Entries, stride: int) -> None:
        self._entries, self.largest = entries, entries.largest
        values, classes = entries.every(stride)
        self._values = values / self.largest
        sizes = classes.bincount(minlength=entries.class_count).numpy()
        edges = np.concatenate([[0], sizes.cumsum()])
        before = np.stack([np.zeros_like(sizes), sizes])
        order = classes.argsort(stable=True).numpy().astype(np.uint32)
        self._row = Arrangement(order, edges[None], np.zeros(1, dtype=np.int64), before)
        self._grown = entries.size / self._values.numel()
        usual = self._values[self._values != 0].abs()
        self.typical = float(usual.median()) if usual.numel() else 1.0

    def try_out(self, step: float, rounding: Apart) -> Trial:
        codes = rounding.coded(self._values, step, 0)
        counts = np.zeros((self._entries.class_count, CODES), dtype=np.int64)
        arrange_and_count(codes, self._row, self._row.begins, np.empty_like(codes), 0, counts)
        together = counts.sum(0)
        occurring = np.flatnonzero(together)

        def error() -> float:
            levels = np.zeros(CODES, np.float32)
            found = rounding.levels(lambda: [(self._values, codes)], together, step)
            levels[occurring] = found.numpy()
            return float((self._values - torch.from_numpy(levels[codes])).square().sum())

        return Trial(self._entries.stream_bytes(counts[:, occurring] * self._grown), error)


class _Sorted(Sample):
    """Values in ascending order with their running sums: what `Nearest` gives one code is a stretch
    of them, so a trial looks up where codes begin."""

    def __init__(self, entries: Entries, stride: int) -> None:
        self.largest = entries.largest
        values = entries.every(stride)[0] / self.largest
        self._sorted = np.sort(values.numpy()).astype(np.float64)
        self._sums = np.concatenate([[0.0], self._sorted.cumsum()])
        self._energy = float(np.square(self._sorted).sum())
        self._grown = entries.size / len(self._sorted)
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
