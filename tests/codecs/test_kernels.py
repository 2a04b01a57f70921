"""Compiled loops against what they stand for in plain torch and numpy, bit by bit."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import gauss

from ders_core.codecs import EncodeContext, Entropy
from ders_core.codecs.coding.prng import random_uniform, uniform_of
from ders_core.codecs.fitting.rounding import EXACT_CODES, Apart, Nearest, Unbiased
from ders_core.codecs.testing.inputs import curvature
from ders_core.compute import kernels
from ders_core.compute.kernels import grouping
from ders_core.compute.kernels.multiples import BLOCK

ROUNDINGS = (Nearest(0.5), Nearest(0.32), Unbiased(7))
ODD = (0.0, -0.0, 1e-45, -1e-45, 0.5, -1.5, EXACT_CODES, -EXACT_CODES, 3e38, -3e38)


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=repr)
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    count=st.sampled_from((0, 1, 7, BLOCK, 2 * BLOCK + 3)),
    classes=st.integers(1, 5),
    step=st.floats(2.0**-20, 2.0**20),
    spread=st.sampled_from((0.1, 3.0, 2000.0, 1e7)),
)
def test_rounding_and_counting(
    rounding: Apart, seed: int, count: int, classes: int, step: float, spread: float
) -> None:
    random = np.random.default_rng(seed)
    drawn = random.standard_normal(count) * spread * step
    drawn[: len(ODD)] = np.array(ODD[:count]) * step
    with np.errstate(over="ignore"):
        values = torch.from_numpy(drawn.astype(np.float32)).clamp_(-3e38, 3e38)
    of_places = torch.from_numpy(random.integers(0, classes, count).astype(np.uint8))
    assert kernels.takes(values)
    for given_classes in (of_places, None):
        codes, counts = rounding.coded(values, step, given_classes, classes)
        with patch("ders_core.compute.kernels._installed", return_value=False):
            wanted, tallies = rounding.coded(values, step, given_classes, classes)
        assert codes.dtype == wanted.dtype
        assert torch.equal(codes, wanted)
        assert torch.equal(counts, tallies)


@pytest.mark.parametrize("begin", [0, 1, 2**32 - 5, 2**32, 3 * 2**32 - 1000, 2**40 + 17])
def test_draws(begin: int) -> None:
    """Also where the lower half of a counter begins anew."""
    counters = torch.arange(begin, begin + 2001)
    assert torch.equal(random_uniform(2001, 11, begin=begin), uniform_of(counters, 11))


def test_grouping() -> None:
    classes = np.random.default_rng(0).integers(0, 6, 5000).astype(np.uint8) * 2
    begins = np.cumsum(np.bincount(classes)) - np.bincount(classes)
    order = np.empty(classes.size, dtype=np.int64)
    grouping.stable_order(classes, begins, order)
    assert np.array_equal(order, np.argsort(classes, kind="stable"))


@pytest.mark.parametrize("rounding", ["nearest", "unbiased"])
@pytest.mark.parametrize("steps", ["even", "sensitive"])
def test_the_same_bytes_without_a_compiler(
    rounding: str, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (48, 80)
    codec = Entropy.model_validate({"bits": 0.7, "rounding": rounding, "steps": steps})
    known = EncodeContext(torch.float32, 3, None, curvature(shape))
    stream = codec.encode(gauss(shape), known)["stream"]
    decoded = codec.decode({"stream": stream}, shape, known)
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    assert torch.equal(codec.encode(gauss(shape), known)["stream"], stream)
    assert torch.equal(codec.decode({"stream": stream}, shape, known), decoded)
