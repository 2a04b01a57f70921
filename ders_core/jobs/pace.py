"""Speed of a step and time left, estimated from a few recent samples."""

from __future__ import annotations

from collections.abc import Sequence

Sample = tuple[float, int]
"""(time in seconds, units done)"""

SPACING = 1.0
"""Least seconds between two kept samples."""

KEPT = 20


def add_sample(samples: Sequence[Sample], now: float, done: int) -> tuple[Sample, ...]:
    """Samples with one more, if units were done and SPACING seconds passed since the last one. The
    first of a step is always kept. If fewer units are done than before, they are counted anew."""
    if samples and done < samples[-1][1]:
        samples = ()
    if samples and (done <= samples[-1][1] or now - samples[-1][0] < SPACING):
        return tuple(samples)
    return (*samples, (now, done))[-KEPT:]


def rate(samples: Sequence[Sample], now: float) -> float | None:
    """Units per second; None while there are too few samples.

    A pause longer than the mean gap between samples counts as time in which nothing was done, so
    the estimate falls while a step reports nothing.
    """
    if len(samples) < 2:
        return None
    (begin, first), (end, last) = samples[0], samples[-1]
    gap = (end - begin) / (len(samples) - 1)
    seconds = max(end, now - gap) - begin
    return (last - first) / seconds if seconds > 0 and last > first else None


def seconds_left(samples: Sequence[Sample], done: int, total: int, now: float) -> float | None:
    """Seconds until `total`; None while there are too few samples."""
    pace = rate(samples, now)
    if pace is None or total <= 0:
        return None
    return max(0.0, (total - done) / pace)
