from __future__ import annotations

from itertools import pairwise

import pytest

from ders_core.jobs.pace import KEPT, add_sample, rate, seconds_left


def test_nothing_is_said_too_early() -> None:
    assert rate((), 0.0) is None
    assert rate(((10.0, 5),), 11.0) is None
    assert rate(((10.0, 5), (10.0, 9)), 10.0) is None
    assert seconds_left(((10.0, 5),), 5, 100, 12.0) is None
    assert seconds_left(((0.0, 0), (1.0, 5)), 5, 0, 1.0) is None


def test_steady_work() -> None:
    samples = tuple((float(second), 10 * second) for second in range(6))
    assert rate(samples, 5.0) == pytest.approx(10)
    assert rate(samples, 5.9) == pytest.approx(10)
    assert seconds_left(samples, 50, 100, 5.0) == pytest.approx(5)
    assert seconds_left(samples, 120, 100, 5.0) == 0


def test_work_that_was_resumed_counts_from_where_it_went_on() -> None:
    assert rate(((0.0, 900), (10.0, 950)), 10.0) == pytest.approx(5)


def test_work_in_other_units_is_counted_anew() -> None:
    """As when bytes of weights were read, and tokens of a text are next."""
    assert add_sample(((0.0, 0), (2.0, 786_432)), 2.5, 1536) == ((2.5, 1536),)


def test_silence_slows_down() -> None:
    samples = ((0.0, 0), (1.0, 10), (2.0, 20))
    assert rate(samples, 3.0) == pytest.approx(10)
    assert rate(samples, 41.0) == pytest.approx(0.5)


def test_samples_are_few_and_spaced() -> None:
    samples: tuple[tuple[float, int], ...] = ()
    for tick in range(1000):
        samples = add_sample(samples, tick / 10, tick)
    assert len(samples) == KEPT
    assert all(later[0] - sooner[0] >= 1 for sooner, later in pairwise(samples))
    assert add_sample(samples, 1e6, samples[-1][1]) == samples
