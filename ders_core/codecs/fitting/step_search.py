"""The smallest step with which a matrix takes no more bytes than it may."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ders_core.codecs.fitting.entries import Coded, Entries
from ders_core.codecs.fitting.rounding import Rounding
from ders_core.codecs.fitting.samples import sample_of
from ders_core.compute.pieces import largest_magnitude
from ders_core.later import torch

FINEST = 512
"""The finest step is the median magnitude over this: over 10 bits, more than a recipe may ask."""

SEARCHES = 16
"""Halvings of the range that contains the step."""

SLACK = 1.0002
"""What the coder may take above the entropy."""

REFINEMENTS = 5
"""How often a step is corrected that takes less than `Rounding.enough` of the bytes."""

MOST_ATTEMPTS = 1 << 10


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
        coded = entries.coded_with(step, rounding)
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
            least = 0.001 * 2.0 ** (attempt // 16)  # where bytes are even over a range of steps
            step *= 2.0 ** min(max(octaves, least), 1.0)
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
    sample = sample_of(entries, roundings[0])
    finest = math.log2(sample.typical / FINEST)
    several = len(roundings) > 1
    fitting = [(math.inf, 1.0, 0)]
    for number, rounding in enumerate(roundings):
        low, high = finest, rounding.coarsest  # log2 of the step; too many bytes, and fewer
        for _ in range(SEARCHES):
            middle = (low + high) / 2
            trial = sample.try_out(2.0**middle, rounding)
            if trial.size > limit:
                low = middle
            else:
                high = middle
                fitting.append((trial.error() if several else 0.0, 2.0**high, number))
    # of one rounding the smallest step: where chance decides, zeros alone may have the least error
    _, step, number = min(fitting) if several else fitting[-1]
    return step * largest, roundings[number]
