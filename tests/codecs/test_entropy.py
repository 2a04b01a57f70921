"""`entropy` against rate-distortion theory, and its stream against damage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from support.codec_support import context, double, gauss, read_or_refused, relative, round_trip

from ders_core.codecs import Entropy, Quantized
from ders_core.codecs.testing.inputs import DTYPES
from ders_core.errors import CodecError


def scalar_bound(bits: float) -> float:
    """The least squared error of any uniform-threshold quantizer with centroids and an ideal
    entropy coder, for a Gaussian of variance 1: by search over step and width of the zero."""
    least = math.inf
    for rounding in np.linspace(0.25, 0.5, 11):
        low, high = 1e-3, 20.0
        for _ in range(60):
            step = math.sqrt(low * high)
            rate = _rate_and_error(step, float(rounding))[0]
            low, high = (step, high) if rate > bits else (low, step)
        least = min(least, _rate_and_error(high, float(rounding))[1])
    return least


def _rate_and_error(step: float, rounding: float) -> tuple[float, float]:
    ends = (np.arange(1, 60 + int(9 / step)) - rounding) * step
    edges = np.concatenate([[-np.inf], -ends[::-1], ends, [np.inf]])
    mass, first = np.diff(norm.cdf(edges)), -np.diff(norm.pdf(edges))
    filled = mass > 1e-300
    rate = -(mass[filled] * np.log2(mass[filled])).sum()
    return float(rate), float(1 - (first[filled] ** 2 / mass[filled]).sum())


@pytest.mark.parametrize("bits", [0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0])
def test_errors_are_those_of_the_best_scalar_quantizer(bits: float) -> None:
    """Within 0.2 dB, the table and the coder's loss paid; 1.7 dB above Shannon at most."""
    delta = gauss((512, 1024), scale=1.0)
    error = relative(Entropy(bits=bits), delta, context()) ** 2
    assert error < scalar_bound(bits) * 10**0.02
    assert error < 2 ** (-2 * bits) * 10**0.17


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_it_is_closer_than_codes_of_as_many_bits(bits: int) -> None:
    """`quantized` pays 16 bits for each 128 entries besides."""
    delta = gauss((128, 512))
    bfloat16 = context(torch.bfloat16)
    plain = relative(Quantized(bits=bits), delta, bfloat16)
    assert relative(Entropy(bits=bits), delta, bfloat16) < (1.0 if bits == 1 else 0.9) * plain


@settings(max_examples=80, deadline=None)
@given(
    out=st.integers(0, 40),
    width=st.integers(0, 60),
    bits=st.floats(0.01, 8),
    power=st.floats(0.3, 6),
    seed=st.integers(0, 999),
)
def test_it_never_takes_more_than_was_asked(
    out: int, width: int, bits: float, power: float, seed: int
) -> None:
    """Whatever the tails are. What even zeros take, 12 bytes, is allowed."""
    delta = gauss((out, width), seed, 1.0)
    delta = delta.sign() * delta.abs() ** power
    parts, _ = round_trip(Entropy(bits=bits), delta, context())
    assert parts["stream"].numel() <= max(bits * out * width / 8, 12)


@pytest.mark.parametrize("bits", [0.05, 0.5, 2.0, 8.0])
def test_outliers_do_not_ruin_it(bits: float) -> None:
    delta = gauss((64, 256))
    delta[3, 7], delta[50, 9] = 1e4, -3e5
    decoded = round_trip(Entropy(bits=bits), delta, context())[1]
    far = delta.abs() > 1
    assert float(((decoded - delta)[far] / delta[far]).abs().max()) < 0.05
    if bits >= 2:
        assert float((decoded - delta)[~far].norm() / delta[~far].norm()) < 0.4


def test_the_budget_is_used() -> None:
    delta = gauss((128, 512))
    for bits in (0.1, 0.5, 1.0, 3.0, 7.5):
        size = round_trip(Entropy(bits=bits), delta, context())[0]["stream"].numel()
        assert size > 0.985 * bits * delta.numel() / 8


def test_what_is_decoded_are_centroids() -> None:
    """Of all entries that are told by one level, their mean is that level: no shift is left."""
    delta = gauss((64, 256))
    decoded = double(round_trip(Entropy(bits=1.0), delta, context())[1])
    for level in np.unique(decoded):
        entries = double(delta)[decoded == level]
        assert entries.mean() == pytest.approx(level, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_stream_does_not_depend_on_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    delta = gauss((32, 64))
    one, two = (
        round_trip(Entropy(bits=2), delta, context(kind))[0] for kind in (dtype, torch.float32)
    )
    assert torch.equal(one["stream"], two["stream"])


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255), cut=st.booleans())
def test_damaged_streams_are_refused_or_read_as_others(place: int, flip: int, cut: bool) -> None:
    codec, delta = Entropy(bits=1.5), gauss((20, 30))
    stream = round_trip(codec, delta, context())[0]["stream"].clone()
    at = place % len(stream)
    if cut:
        stream = stream[:at]
    else:
        stream[at] ^= flip
    read_or_refused(codec, {"stream": stream}, (20, 30))


def test_a_stream_of_another_shape_is_refused() -> None:
    codec = Entropy(bits=2)
    parts, _ = round_trip(codec, gauss((20, 30)), context())
    for shape in ((20, 31), (0, 5), (4000, 4000)):
        with pytest.raises(CodecError, match="damaged"):
            codec.decode(parts, shape, context())


def test_a_level_beyond_float32_is_refused_while_encoding() -> None:
    """Not by whoever decodes: chance rounds the largest values up, to a multiple that overflows."""
    largest = torch.finfo(torch.float32).max
    delta = torch.linspace(-0.99, 0.99, 2048).view(32, 64) * largest
    with pytest.raises(CodecError, match="float32"):
        Entropy(bits=2, rounding="unbiased").encode(delta, context())


@pytest.mark.parametrize(
    ("knob", "text"), [(5e-5, "0.00005"), (0.0123456789, "0.0123457"), (1234.5, "1234.5"), (1, "1")]
)
def test_a_label_tells_one_knob_from_another(knob: float, text: str) -> None:
    codec = Entropy(knob=knob, steps="sensitive")
    assert codec.label == f"entropy-coded, knob {text}, sensitive steps"
