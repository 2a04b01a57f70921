"""`sparse` against an independent reference in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import (
    context,
    double,
    gauss,
    inputs,
    output_error,
    read_or_refused,
    relative,
    round_trip,
    second_moments,
)

from ders_core.codecs import Sparse
from ders_core.codecs.coding.prng import random_positions
from ders_core.codecs.testing.inputs import DTYPES
from ders_core.files.dtype import Dtype


@pytest.mark.parametrize("drop", [0.0, 0.25, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("shape", [(13, 29), (40, 50)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_drop_is_equation_4(drop: float, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """F(Δ) = (1 − M) ⊙ Δ / (1 − p), with M from the regenerated positions."""
    delta = gauss(shape)
    size = delta.numel()
    codec = Sparse(drop_rate=drop)
    _, decoded = round_trip(codec, delta, context(dtype, seed=17))
    dropped = round(drop * size)
    mask = np.ones(size)
    mask[random_positions(size, size - dropped, 17).numpy()] = 0
    assert mask.sum() == dropped
    stored = double(delta.to(dtype))
    expected = (1 - mask.reshape(shape)) * stored / (1 - dropped / size)
    np.testing.assert_allclose(double(decoded), expected, rtol=2e-7)


def test_random_drop_is_unbiased() -> None:
    """Over many seeds; each draws for the same rows five times."""
    delta = gauss((20, 30), scale=1.0)
    seeds, times = 240, 5
    rows, draws = delta.repeat(times, 1), seeds * times
    codec = Sparse(drop_rate=0.75)
    total = np.zeros((20, 30))
    for seed in range(seeds):
        seeded = context(seed=seed)
        decoded = codec.decode(codec.encode(rows, seeded), (times * 20, 30), seeded)
        total += double(decoded).reshape(times, 20, 30).sum(0)
    # Each entry's estimator has the variance Δ²·p/(1 − p) = 3Δ².
    deviation = (total / draws - double(delta)) / (np.abs(double(delta)) * (3 / draws) ** 0.5)
    assert np.abs(deviation).max() < 5
    assert 0.9 < deviation.std() < 1.1


def test_random_drop_of_everything_is_zero() -> None:
    codec = Sparse(drop_rate=0.999)
    parts, decoded = round_trip(codec, gauss((5, 5)), context())
    assert parts["values"].numel() == 0
    assert not decoded.any()


def test_random_drop_depends_on_the_seed() -> None:
    codec, delta = Sparse(drop_rate=0.5), gauss((30, 30))
    one = round_trip(codec, delta, context(seed=1))[1] != 0
    two = round_trip(codec, delta, context(seed=2))[1] != 0
    assert 0.4 < float((one & two).sum() / one.sum()) < 0.6


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coarse", [False, True])
def test_magnitude_keeps_the_largest(drop: float, dtype: torch.dtype, coarse: bool) -> None:
    delta = gauss((31, 45), scale=1.0)
    delta = (delta * 3).round() / 3 if coarse else delta  # with many ties
    _, decoded = round_trip(Sparse(drop_rate=drop, method="magnitude"), delta, context(dtype))
    flat = double(delta).ravel()
    kept = np.argsort(-np.abs(flat), kind="stable")[: flat.size - round(drop * flat.size)]
    expected = np.zeros_like(flat)
    expected[kept] = double(delta.to(dtype)).ravel()[kept]
    np.testing.assert_array_equal(double(decoded).ravel(), expected)


def test_magnitude_is_closer_than_random_drop() -> None:
    delta = gauss((64, 64))
    errors = [
        float(
            (round_trip(Sparse(drop_rate=0.8, method=method), delta, context())[1] - delta).norm()
        )
        for method in ("magnitude", "random")
    ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("method", ["magnitude", "della"])
def test_a_budget_by_row_keeps_as_many_in_each(method: Any) -> None:
    delta = gauss((20, 33)) * torch.arange(1, 21)[:, None]
    codec = Sparse(drop_rate=0.7, method=method, budget="row")
    _, decoded = round_trip(codec, delta, context())
    assert ((decoded != 0).sum(1) == 33 - round(0.7 * 33)).all()
    if method == "magnitude":
        for row, kept in zip(double(delta), double(decoded), strict=True):
            chosen = np.argsort(-np.abs(row))[: 33 - round(0.7 * 33)]
            np.testing.assert_array_equal(np.nonzero(kept)[0], np.sort(chosen))


@settings(max_examples=60, deadline=None)
@given(
    kept=st.integers(1, 7),
    more=st.integers(1, 8),
    out=st.integers(1, 9),
    width=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_patterns_keep_the_largest_of_each_block(
    kept: int, more: int, out: int, width: int, seed: int
) -> None:
    block = kept + more
    delta = gauss((out, width), seed)
    _, decoded = round_trip(Sparse(pattern=f"{kept}:{block}"), delta, context())
    expected = np.zeros((out, width))
    for row, values in enumerate(double(delta)):
        for begin in range(0, width, block):
            entries = values[begin : begin + block]
            chosen = np.argsort(-np.abs(entries), kind="stable")[:kept]
            expected[row, begin + chosen] = entries[chosen]
    np.testing.assert_array_equal(double(decoded), expected)


def test_two_of_four_takes_three_bits_a_block() -> None:
    """Six masks of two in four: hardware's own form takes 4 bits."""
    parts = Sparse(pattern="2:4").parts((64, 128), Dtype.BF16)
    assert parts["values"].nbytes == 64 * 128 / 2 * 2
    assert parts["positions"].nbytes == 64 * 128 / 4 * 3 / 8


def test_della_draws_the_larger_ones_more_often() -> None:
    """Over many seeds each entry is kept as often as eq. 2 of DELLA says (arXiv 2406.11617): the
    chance falls linearly with the rank in the row, from p + ε/2 to p − ε/2. Each seed draws for the
    same rows ten times."""
    delta, rate, spread = gauss((4, 30), scale=1.0), 0.6, 0.5
    seeds, times = 400, 10
    rows, draws = delta.repeat(times, 1), seeds * times
    codec = Sparse(drop_rate=rate, method="della", spread=spread)
    seen = np.zeros((4, 30))
    total = np.zeros((4, 30))
    for seed in range(seeds):
        decoded = double(round_trip(codec, rows, context(seed=seed))[1]).reshape(times, 4, 30)
        seen += (decoded != 0).sum(0)
        total += decoded.sum(0)
    assert seen.sum() == draws * (120 - round(rate * 120))  # an exact number
    half = spread * min(rate, 1 - rate)
    rank = np.argsort(np.argsort(-np.abs(double(delta)), axis=1), axis=1)
    chance = 1 - rate + half - 2 * half * rank / 29
    # Pareto sampling meets its chances nearly; the draws' own deviation is below 0.008.
    assert np.abs(seen / draws - chance).max() < 0.035
    bias = np.abs(total / draws - double(delta)) / np.abs(double(delta))
    assert np.median(bias) < 0.03


def test_della_is_closer_than_random_drop_and_without_spread_as_close() -> None:
    delta = gauss((64, 128))
    errors = {
        spread: relative(Sparse(drop_rate=0.7, method="della", spread=spread), delta, context())
        for spread in (0.0, 0.5, 1.0)
    }
    random = relative(Sparse(drop_rate=0.7), delta, context())
    assert errors[1.0] < errors[0.5] < 0.95 * errors[0.0]
    assert errors[0.0] == pytest.approx(random, rel=0.05)


@pytest.mark.parametrize("moments", ["none", "diagonal", "whole"])
@pytest.mark.parametrize("method", ["random", "magnitude", "della"])
def test_least_squares_is_the_best_factor_of_each_row(method: Any, moments: str) -> None:
    """By lstsq in float64, row by row, on the inputs themselves."""
    delta = gauss((7, 24), scale=1.0)
    x = inputs(24, 50) if moments == "whole" else torch.eye(24)
    if moments == "diagonal":
        x = torch.diag(torch.arange(1.0, 25.0))
    known = None if moments == "none" else second_moments(x)
    known = known.diagonal() if moments == "diagonal" and known is not None else known
    calibrated = context(moments=known)
    plain = Sparse(drop_rate=0.6, method=method, rescale="none", value_bits=8)
    fitted = Sparse(drop_rate=0.6, method=method, rescale="least_squares", value_bits=8)
    before, after = (double(round_trip(codec, delta, calibrated)[1]) for codec in (plain, fitted))
    for row, kept, scaled in zip(double(delta), before, after, strict=True):
        factor = np.linalg.lstsq((double(x) @ kept)[:, None], double(x) @ row, rcond=None)[0][0]
        np.testing.assert_allclose(scaled, kept * factor, atol=0.02 * np.abs(before).max())


def test_least_squares_never_hurts_and_needs_no_unbiasedness() -> None:
    delta = gauss((32, 64))
    for rate in (0.3, 0.6, 0.9):
        scaled = relative(Sparse(drop_rate=rate), delta, context())
        fitted = relative(Sparse(drop_rate=rate, rescale="least_squares"), delta, context())
        assert fitted < scaled
        assert fitted == pytest.approx(rate**0.5, rel=0.05)  # of what is left, as it is


@pytest.mark.parametrize(("bits", "most"), [(8, 0.01), (4, 0.12)])
@pytest.mark.parametrize("method", ["random", "magnitude", "della"])
def test_values_in_few_bits_are_near_the_values(method: Any, bits: Any, most: float) -> None:
    """4 bits lose 0.1 of a Gaussian's size, and no more of the shape that is left."""
    delta = gauss((64, 96))
    whole = Sparse(drop_rate=0.5, method=method)
    short = Sparse(drop_rate=0.5, method=method, value_bits=bits)
    parts, exact = round_trip(whole, delta, context(torch.bfloat16))
    packed, near = round_trip(short, delta, context(torch.bfloat16))
    assert torch.equal(exact != 0, near != 0) or bits == 4
    assert float((near - exact).norm() / exact.norm()) < most
    saved = parts["values"].nbytes - sum(
        packed[part].nbytes for part in packed if part != "positions"
    )
    assert saved > (16 - bits - 0.4) / 8 * exact.count_nonzero()


@pytest.mark.parametrize("pattern", [None, "1:4"])
def test_with_a_calibration_what_inputs_amplify_is_kept(pattern: str | None) -> None:
    """Wanda's score (arXiv 2306.11695): |Δ_ij|·√E[x_j²]; the error of outputs falls."""
    delta, x = gauss((30, 40)), inputs(40)
    calibrated = context(moments=second_moments(x).diagonal())
    codec = (
        Sparse(pattern=pattern)
        if pattern
        else Sparse(drop_rate=0.75, method="magnitude", budget="row")
    )
    kept = double(round_trip(codec, delta, calibrated)[1]) != 0
    score = np.abs(double(delta)) * np.sqrt((double(x) ** 2).mean(0))
    if pattern is None:
        least = np.where(kept, score, np.inf).min(1)
        most = np.where(kept, 0, score).max(1)
        assert (least >= most * (1 - 1e-6)).all()
    assert output_error(codec, delta, calibrated, x) < 0.9 * output_error(
        codec, delta, context(), x
    )


DAMAGE = [
    (Sparse(drop_rate=0.9, method="magnitude"), "positions"),
    (Sparse(drop_rate=0.4, method="magnitude"), "positions"),
    (Sparse(drop_rate=0.9, method="magnitude", positions="fixed"), "positions"),
    (Sparse(pattern="3:7"), "positions"),
    (Sparse(drop_rate=0.9, method="della", value_bits=4), "positions"),
]


@pytest.mark.parametrize(("codec", "part"), DAMAGE, ids=lambda value: getattr(value, "label", ""))
@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255), cut=st.booleans())
def test_damaged_positions_are_refused_or_read_as_others(
    codec: Sparse, part: str, place: int, flip: int, cut: bool
) -> None:
    """Never another error, never a value outside of the matrix."""
    delta = gauss((20, 30))
    parts, _ = round_trip(codec, delta, context())
    spoilt = parts[part].clone()
    at = place % len(spoilt)
    if cut and part in codec.ragged:
        spoilt = spoilt[:at]
    else:
        spoilt[at] ^= flip
    read_or_refused(codec, {**parts, part: spoilt}, (20, 30))
