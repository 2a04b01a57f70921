"""The smallest step with which a matrix takes no more bytes than it may."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ders_core.codecs.coding import classed_stream, even_stream
from ders_core.codecs.coding.steps import Steps
from ders_core.codecs.fitting.rounding import FARTHEST, Rounding
from ders_core.compute.pieces import chunk_values, largest_magnitude, pieces

CHUNK = 1 << 19
"""Values at a time."""

CODES = 2 * FARTHEST + 1

FINEST = 512
"""The finest step is the median magnitude over this: over 10 bits, more than a recipe may ask."""

SEARCHES = 16
"""Halvings of the range that contains the step."""

SLACK = 1.0002
"""What the coder may take above the entropy."""

REFINEMENTS = 5
"""How often a step is corrected that takes less than `Rounding.enough` of the bytes."""

MOST_ATTEMPTS = 1 << 12


@dataclass(frozen=True)
class Entries:
    """values: float32 `[n]` on the CPU, in units of their steps. steps: None where all are
    alike."""

    values: torch.Tensor
    steps: Steps | None = None

    def counts(self, codes: torch.Tensor, piece: slice) -> torch.Tensor:
        """How often each code occurs in each class of steps, int64 `[classes, CODES]`. codes: of
        the entries in `piece`, increased by FARTHEST."""
        if self.steps is None:
            return torch.bincount(codes, minlength=CODES).unsqueeze(0)
        places = self.steps.classes[piece].long() * CODES + codes
        return torch.bincount(places, minlength=self.steps.class_count * CODES).view(-1, CODES)

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


def coded_with(entries: Entries, step: float, rounding: Rounding) -> Coded:
    """All entries with this step."""
    values = entries.values
    codes = torch.empty(values.numel(), dtype=torch.int32)
    classes = 1 if entries.steps is None else entries.steps.class_count
    counts = torch.zeros(classes, CODES, dtype=torch.int64)
    for piece in pieces(values.numel(), chunk_values(values.device, CHUNK)):
        codes[piece] = rounding.codes(values[piece], step, piece.start).add_(FARTHEST)
        counts += entries.counts(codes[piece], piece)
    return Coded(codes, counts, step, rounding)


def within(
    entries: Entries,
    roundings: Sequence[Rounding],
    limit: int,
    write: Callable[[Coded], torch.Tensor],
) -> torch.Tensor:
    """The stream of at most `limit` bytes with about the smallest step; it may be of zeros alone,
    which must be within the limit.

    write: makes the stream of codes. roundings: the one with the least squared error is taken.
    """
    count = max(entries.values.numel(), 1)
    step, rounding = _first_guess(entries, roundings, limit)
    slope = min(1.0, 8 * limit / count) if rounding.enough else 1.0  # bits that a doubling saves
    best, too_small = None, 0.0
    for attempt in range(MOST_ATTEMPTS):
        coded = coded_with(entries, step, rounding)
        size = entries.stream_bytes(coded.counts.numpy(), SLACK)
        octaves = 8 * (size - rounding.aim * limit) / count / slope
        stream = write(coded) if size <= limit else None
        if stream is not None and stream.numel() <= limit:
            best, fitting = stream, step
            if size >= rounding.enough * limit:
                break
            step *= 2.0 ** min(max(octaves, -1.0), -0.001)
        else:
            too_small = step
            step *= 2.0 ** min(max(octaves, 0.001), 1.0)
        if best is not None:
            if attempt >= REFINEMENTS:
                break
            if too_small:
                step = math.sqrt(too_small * fitting)
    if best is None:
        raise AssertionError("zeros alone are within every limit")
    return best


def _first_guess(
    entries: Entries, roundings: Sequence[Rounding], limit: int
) -> tuple[float, Rounding]:
    """(step, rounding) with the least squared error on a sample, within `limit` bytes in all."""
    largest = largest_magnitude(entries.values)
    if not largest:
        return 1.0, roundings[0]
    stride = -(-entries.values.numel() // roundings[0].sample)
    sample = _Sample(entries, stride, largest)
    values = sample.values
    typical = float(values[values != 0].abs().median()) if bool(values.any()) else 1.0
    finest = math.log2(typical / FINEST)
    fitting = [(math.inf, 1.0, 0)]
    for number, rounding in enumerate(roundings):
        low, high = finest, rounding.coarsest  # log2 of the step; too many bytes, and fewer
        for _ in range(SEARCHES):
            middle = (low + high) / 2
            size, error = sample.try_out(2.0**middle, rounding)
            if size > limit:
                low = middle
            else:
                high = middle
                fitting.append((error, 2.0**high, number))
    # of one rounding the smallest step: where chance decides, zeros alone may have the least error
    _, step, number = min(fitting) if len(roundings) > 1 else fitting[-1]
    return step * largest, roundings[number]


class _Sample:
    """Each `stride`-th entry, as a share of the largest one."""

    def __init__(self, entries: Entries, stride: int, largest: float) -> None:
        self.values = entries.values[::stride] / largest
        self._entries, self._stride = entries, stride
        self._scale = entries.values.numel() / self.values.numel()

    def try_out(self, step: float, rounding: Rounding) -> tuple[float, float]:
        """(bytes of all entries, squared error of the sample)."""
        codes = rounding.codes(self.values, step, 0).add_(FARTHEST)
        every = slice(None, None, self._stride)
        counts = self._entries.counts(codes, every)
        together = counts.sum(0)
        levels = torch.zeros(CODES)
        levels[together > 0] = rounding.levels(self.values, codes, together, step)
        error = float((self.values - levels.index_select(0, codes)).square().sum())
        return self._entries.stream_bytes(counts.double().numpy() * self._scale), error
