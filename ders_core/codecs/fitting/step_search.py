"""The smallest step with which a matrix takes no more bytes than it may."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ders_core.codecs.fitting.entries import Coded, Entries
from ders_core.codecs.fitting.rounding import Apart, Rounding
from ders_core.codecs.fitting.samples import Sample, sample_of
from ders_core.later import torch

FINEST = 512
"""The finest step is the median magnitude over this: over 10 bits, more than a recipe may ask."""

SEARCHES = 16
"""Halvings of the range that contains the step."""

CLOSE = 3e-4
"""A first guess is this near to the bytes wanted, in octaves."""

SLACK = 1.0002
"""What the coder may take above the entropy."""

REFINEMENTS = 5
"""How often a step is corrected that takes less than `Rounding.enough` of the bytes."""

MOST_ATTEMPTS = 1 << 10


def within(
    entries: Entries,
    roundings: Sequence[Apart],
    limit: int,
    write: Callable[[Coded], torch.Tensor],
) -> torch.Tensor:
    """The stream of at most `limit` bytes with about the smallest step; it may be of zeros alone,
    which must be within the limit.

    write: makes the stream of codes. roundings: the one with the least squared error is taken.
    """
    step, rounding = first_guess(entries, roundings, limit)
    return corrected(entries, rounding, step, limit, write)


def corrected(
    entries: Entries,
    rounding: Rounding,
    step: float,
    limit: int,
    write: Callable[[Coded], torch.Tensor],
) -> torch.Tensor:
    """As `within`, of one rounding. step: the first that is tried."""
    count = max(entries.size, 1)
    slope = min(1.0, 8 * limit / count) if rounding.enough else 1.0  # bits that a doubling saves
    best, fitting, too_small = None, None, 0.0
    for attempt in range(MOST_ATTEMPTS):
        best = None  # before there is another one
        coded = entries.coded_with(step, rounding)
        size = entries.stream_bytes(coded.counts_within, SLACK)
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
        del coded, stream
        if fitting is not None:
            if attempt >= REFINEMENTS:
                break
            if too_small:
                step = math.sqrt(too_small * fitting)
    if fitting is None:
        raise AssertionError("zeros alone are within every limit")
    return write(entries.coded_with(fitting, rounding)) if best is None else best


def _even_out(sample: Sample, rounding: Apart, limit: int, finest: float) -> float:
    """The step that takes `aim` of the limit, in largest values: false position (Illinois) in its
    logarithm."""

    def excess_of(place: float) -> float:
        return math.log2(sample.try_out(2.0**place, rounding).size / (rounding.aim * limit))

    low, high = finest, rounding.coarsest  # log2 of the step: too many bytes, and fewer
    excess, lack, last = excess_of(low), excess_of(high), 0
    if excess <= 0 or lack >= 0:
        return math.exp2(low if excess <= 0 else high)
    for _ in range(SEARCHES):
        middle = low + (high - low) * min(max(excess / (excess - lack), 0.02), 0.98)
        off = excess_of(middle)
        if abs(off) < CLOSE:
            break
        if off > 0:
            low, excess = middle, off
            lack = lack / 2 if last > 0 else lack
        else:
            high, lack = middle, off
            excess = excess / 2 if last < 0 else excess
        last = 1 if off > 0 else -1
    return math.exp2(middle)


def first_guess(entries: Entries, roundings: Sequence[Apart], limit: int) -> tuple[float, Apart]:
    """(step, rounding) with the least squared error on a sample, within `limit` bytes in all."""
    sample = sample_of(entries, roundings[0])
    if sample is None:
        return 1.0, roundings[0]
    finest = math.log2(sample.typical / FINEST)
    several = len(roundings) > 1
    if not several:
        return _even_out(sample, roundings[0], limit, finest) * sample.largest, roundings[0]
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
                fitting.append((trial.error(), 2.0**high, number))
    _, step, number = min(fitting)
    return step * sample.largest, roundings[number]
