"""The bootstrap over windows, against the normal law that it approaches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.evaluate import interval
from ders_core.evaluate.interval import Interval


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(100, 300), scale=st.sampled_from([1e-6, 3.0]))
def test_of_many_windows_it_is_that_of_the_normal_law(seed: int, count: int, scale: float) -> None:
    values = scale * np.random.default_rng(seed).normal(5, 1, count)
    measured = Interval.of(values.tolist())
    error = 1.96 * values.std() / np.sqrt(count)
    assert measured.mean == pytest.approx(values.mean())
    assert measured.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert measured.high == pytest.approx(values.mean() + error, abs=0.1 * error)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), weight=st.floats(0.1, 10))
def test_texts_are_not_exchanged_for_one_another(seed: int, weight: float) -> None:
    """Two texts that differ much: their difference is no part of the uncertainty."""
    random = np.random.default_rng(seed)
    first, second = random.normal(0.1, 0.01, 120), random.normal(9, 0.2, 80)
    measured = Interval.of_texts([first.tolist(), second.tolist()], [1, weight])
    shares = np.array([1, weight]) / (1 + weight)
    error = 1.96 * np.hypot(
        shares[0] * first.std() / np.sqrt(120), shares[1] * second.std() / np.sqrt(80)
    )
    mean = shares @ [first.mean(), second.mean()]
    assert measured.mean == pytest.approx(mean)
    assert measured.high - measured.low == pytest.approx(2 * error, rel=0.1)


def test_a_long_text_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(5, 1, 50).tolist()
    whole = Interval.of(values)
    monkeypatch.setattr(interval, "DRAWN_AT_ONCE", 777)
    parts = Interval.of(values)
    assert parts.low == pytest.approx(whole.low, rel=0.01)
    assert parts.high == pytest.approx(whole.high, rel=0.01)
