"""`quantized` against an independent reference in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.codec_support import (
    context,
    double,
    gauss,
    inputs,
    output_error,
    relative,
    round_trip,
    second_moments,
)

from ders_core.codecs import Quantized
from ders_core.codecs.fitting import in_turn, row_rounding
from ders_core.codecs.fitting.levels import normal, ternary, uniform
from ders_core.codecs.fitting.lloyd import learnt
from ders_core.codecs.testing.inputs import DTYPES
from ders_core.errors import CodecError
from ders_core.files.dtype import Dtype


def quantized_reference(delta: torch.Tensor, bits: int, group_size: int) -> tuple[Any, Any]:
    """By brute force in float64: per group, (error of the best shrunken range, largest |Δ|)."""
    values = double(delta)
    size = group_size or values.shape[1]
    levels = np.arange(2**bits) - (2**bits - 1) / 2
    errors, peaks = [], []
    for row in values:
        for begin in range(0, len(row), size):
            group = row[begin : begin + size]
            peak = np.abs(group).max()
            candidates = [peak * share / levels[-1] for share in (1, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)]
            errors.append(
                min(((group[:, None] - s * levels) ** 2).min(1).sum() for s in candidates)
            )
            peaks.append(peak)
    return np.array(errors), np.array(peaks)


def group_errors(delta: torch.Tensor, decoded: torch.Tensor, group_size: int) -> Any:
    size = group_size or delta.shape[1]
    squares = (double(delta) - double(decoded)) ** 2
    return np.array(
        [row[begin : begin + size].sum() for row in squares for begin in range(0, len(row), size)]
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [0, 7, 32, 128])
def test_scales_are_better_than_the_best_shrunken_ranges(bits: int, group_size: int) -> None:
    """Of all blocks together, and of each within a twentieth: few scales are tried."""
    delta = gauss((9, 75), seed=bits)
    codec = Quantized(bits=bits, group_size=group_size)
    _, decoded = round_trip(codec, delta, context())
    best, _ = quantized_reference(delta, bits, min(group_size, 75))
    errors = group_errors(delta, decoded, min(group_size, 75))
    assert (errors <= 1.05 * best).all()
    assert errors.sum() <= 0.995 * best.sum()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_are_the_nearest_levels_of_the_stored_scale(bits: int, dtype: torch.dtype) -> None:
    """No other choice of codes, entry by entry, comes closer."""
    delta, size = gauss((6, 50), seed=bits), 16
    parts, decoded = round_trip(Quantized(bits=bits, group_size=size), delta, context(dtype))
    levels = np.arange(2**bits) - (2**bits - 1) / 2
    scales = np.repeat(double(parts["scales"]), size, axis=1)[:, :50]
    choices = scales[..., None] * levels  # [out, in, levels]
    nearest = np.abs(choices - double(delta)[..., None]).min(-1)
    got = np.abs(double(decoded) - double(delta))
    np.testing.assert_allclose(got, nearest, rtol=1e-4, atol=2e-8)
    np.testing.assert_array_less(np.abs(choices - double(decoded)[..., None]).min(-1), 1e-8)


@pytest.mark.parametrize("group_size", [0, 1, 7, 64])
def test_one_bit_is_the_sign_times_the_mean(group_size: int) -> None:
    """BitDelta (arXiv 2402.10193), per group; the last group of a row may be short."""
    delta = gauss((11, 53))
    _, decoded = round_trip(Quantized(bits=1, group_size=group_size), delta, context())
    values, size = double(delta), group_size or 53
    expected = np.empty_like(values)
    for begin in range(0, 53, size):
        part = values[:, begin : begin + size]
        expected[:, begin : begin + size] = np.sign(part) * np.abs(part).mean(1, keepdims=True)
    np.testing.assert_allclose(double(decoded), expected, rtol=1e-6)


def test_error_falls_with_bits_and_is_that_of_a_gaussian() -> None:
    """The best uniform quantizers of a Gaussian leave 0.603, 0.345, 0.194, 0.107 (Max 1960, table
    II: roots of 0.3634, 0.1188, 0.03744, 0.01154). A scale fitted to each 128 entries, stored in
    bfloat16, comes near; at 4 bits it gains a little, because it knows its group's extremes.
    """
    delta = gauss((32, 512))
    errors = [
        relative(Quantized(bits=bits), delta, context(torch.bfloat16)) for bits in range(1, 9)
    ]
    assert all(more > 1.5 * less for more, less in pairwise(errors))
    for error, ideal in zip(errors, (0.6028, 0.3447, 0.1935, 0.1074), strict=False):
        assert 0.9 * ideal < error < 1.06 * ideal
    assert errors[7] < 0.011


def test_outliers_do_not_ruin_a_group() -> None:
    delta = gauss((1, 128))
    delta[0, 5] = 20 * delta.abs().max()
    clean = torch.ones(128, dtype=torch.bool)
    clean[5] = False
    decoded = round_trip(Quantized(bits=8), delta, context())[1]
    assert float((decoded - delta)[0, clean].abs().max()) < float(delta.abs().max()) / 255


MAX_1960 = {
    1: ([0.7980], 0.3634),
    2: ([0.4528, 1.510], 0.1175),
    3: ([0.2451, 0.7560, 1.344, 2.152], 0.03454),
    4: ([0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733], 0.009497),
}
"""J. Max, Quantizing for minimum distortion, 1960, table I: positive levels, squared error."""


@pytest.mark.parametrize("bits", sorted(MAX_1960))
def test_normal_levels_are_those_of_lloyd_and_max(bits: int) -> None:
    table = double(normal(bits).table)
    positive = np.array(MAX_1960[bits][0])
    np.testing.assert_allclose(table, [*-positive[::-1], *positive], atol=1.5e-3)


@pytest.mark.parametrize("bits", sorted(MAX_1960))
@pytest.mark.parametrize("grid", ["normal", "learned"])
def test_gaussian_levels_reach_the_lloyd_max_error(bits: int, grid: Any) -> None:
    """A scale for each 128 entries, in bfloat16, costs little; from 2 bits on the grid gains over
    the uniform one."""
    delta = gauss((64, 1024))
    error = relative(Quantized(bits=bits, grid=grid), delta, context(torch.bfloat16)) ** 2
    assert error < 1.04 * MAX_1960[bits][1]
    plain = relative(Quantized(bits=bits), delta, context(torch.bfloat16)) ** 2
    assert error < (1.01 if bits == 1 else 0.99) * plain


def test_four_bits_of_a_gaussian_are_within_one_and_a_half_decibel_of_the_optimum() -> None:
    delta = gauss((64, 1024))
    for codec in (Quantized(bits=4), Quantized(bits=4, grid="normal", scale_bits=8)):
        error = relative(codec, delta, context(torch.bfloat16)) ** 2
        assert 10 * np.log10(error / MAX_1960[4][1]) < 1.5


@settings(max_examples=150, deadline=None)
@given(values=st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=50), bits=st.integers(1, 8))
@example(values=[0.9999989867210388], bits=6)  # beside a border of 64 levels
def test_nearest_is_the_nearest_level(values: list[float], bits: int) -> None:
    """Uniform levels are found by an offset, which rounds a value in float32: one that lies beside
    a border is as far from the other level, to within two such roundings."""
    entries = torch.tensor(values)
    for levels in (normal(bits), uniform(2**bits), uniform(2**bits, centred=False), ternary()):
        table = double(levels.table)
        codes = levels.nearest(entries).long()
        distances = np.abs(table[codes.numpy()] - double(entries))
        best = np.abs(table - double(entries)[:, None]).min(1)
        rounding = 2 * (levels.reach + 6.5) * float(np.finfo(np.float32).eps)
        np.testing.assert_allclose(distances, best, rtol=0, atol=rounding)
        np.testing.assert_array_equal(double(levels.at(codes)), table[codes.numpy()])


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_rough_level_is_about_as_near(bits: int) -> None:
    """What searches for scales use: exact for few levels, and else off by a bin at most, of which
    there are 2^12 over all borders."""
    values = gauss((20000,), 0, 1.2)
    levels = normal(bits)
    exact, rough = (double(snap(values.clone())) for snap in (levels.snap_, levels.snap_roughly_))
    if levels.count <= 16:
        np.testing.assert_array_equal(exact, rough)
    distances = (np.abs(snapped - double(values)) for snapped in (exact, rough))
    nearest, about = distances
    width = float(levels.borders[-1] - levels.borders[0]) / 4000
    assert (about - nearest).max() <= 2 * width
    assert np.square(about).sum() <= 1.002 * np.square(nearest).sum()


def test_learnt_levels_find_few_values_exactly() -> None:
    levels = torch.tensor([-2.0, 0.25, 0.5, 3.0])
    values = levels[torch.randint(4, (3, 200), generator=torch.Generator().manual_seed(0))]
    assert learnt(values, 2).tolist() == levels.tolist()
    assert set(learnt(values, 3).tolist()) == set(levels.tolist())
    assert learnt(torch.full((3, 4), 7.0), 1).tolist() == [7.0, 7.0]
    assert not learnt(torch.empty(0, 4), 2).any()


def test_learnt_levels_are_at_least_as_good_as_k_means_from_quantiles() -> None:
    """Against plain Lloyd iterations in float64, on heavy tails."""
    values = gauss((40, 200), 1, 1.0) ** 3
    table = double(learnt(values, 3))
    flat = double(values).ravel()
    means = np.quantile(flat, (np.arange(8) + 0.5) / 8)
    for _ in range(300):
        nearest = np.abs(flat[:, None] - means).argmin(1)
        means = np.array(
            [flat[nearest == k].mean() if (nearest == k).any() else means[k] for k in range(8)]
        )
    errors = [(np.abs(flat[:, None] - levels).min(1) ** 2).mean() for levels in (table, means)]
    assert errors[0] < 1.02 * errors[1]


def test_the_learned_grid_gains_on_a_shape_that_is_not_gaussian() -> None:
    delta = gauss((32, 512)).sign() * gauss((32, 512), 1).abs().add(3e-2)  # nothing near zero
    learned = relative(Quantized(bits=2, grid="learned"), delta, context(torch.bfloat16))
    for grid in ("uniform", "normal", "affine"):
        other = Quantized(bits=2, grid=grid)
        assert learned < 0.8 * relative(other, delta, context(torch.bfloat16))


@pytest.mark.parametrize("group_size", [0, 7, 64])
def test_ternary_is_near_the_best_of_all_scales(group_size: int) -> None:
    """Against a thousand scales for every group."""
    delta = gauss((8, 64))
    decoded = round_trip(Quantized(grid="ternary", group_size=group_size), delta, context())[1]
    errors = group_errors(delta, decoded, group_size)
    size = group_size or 64
    best = []
    for row in double(delta):
        for begin in range(0, 64, size):
            group = row[begin : begin + size]
            scales = np.linspace(0, np.abs(group).max(), 1000)[1:, None]
            codes = np.clip(np.round(group / scales), -1, 1)
            best.append(((group - scales * codes) ** 2).sum(1).min())
    assert errors.sum() < 1.02 * sum(best)
    assert (errors <= 1.25 * np.array(best) + 1e-12).all()


def test_ternary_takes_1_6_bits() -> None:
    parts = Quantized(grid="ternary").parts((50, 256), Dtype.BF16)
    assert parts["codes"].nbytes * 8 == 1.6 * 50 * 256


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_offset_follows_what_lies_beside_zero(bits: int, dtype: torch.dtype) -> None:
    delta = gauss((8, 60)) + gauss((8, 1), 1, 0.2)
    affine = relative(Quantized(bits=bits, grid="affine", group_size=20), delta, context(dtype))
    plain = relative(Quantized(bits=bits, group_size=20), delta, context(dtype))
    assert affine < 0.6 * plain
    centred = gauss((8, 60))
    affine = relative(Quantized(bits=bits, grid="affine", group_size=20), centred, context(dtype))
    assert affine < 1.05 * relative(Quantized(bits=bits, group_size=20), centred, context(dtype))


@pytest.mark.parametrize("grid", ["uniform", "normal", "affine", "learned"])
def test_scales_in_eight_bits_lose_little(grid: Any) -> None:
    delta = gauss((16, 512)) * torch.linspace(0.2, 1, 512)
    wide = Quantized(bits=3, group_size=32, grid=grid)
    short = Quantized(bits=3, group_size=32, grid=grid, scale_bits=8)
    before, after = (relative(codec, delta, context(torch.bfloat16)) for codec in (wide, short))
    assert after < 1.02 * before
    sizes = [codec.parts((16, 512), Dtype.BF16)["scales"].nbytes for codec in (wide, short)]
    assert sizes == [16 * 16 * 2, 16 * 16]


def gptq(delta: Any, moments: Any, nearest: Any) -> Any:
    """Optimal Brain Quantization's update, column by column, the inverse shrunk by elimination: as
    the paper states it (arXiv 2210.17323, eq. 2 and 3), without the Cholesky form."""
    order = np.argsort(-np.diag(moments), kind="stable")
    rest = delta[:, order].copy()
    damped = moments[order][:, order] + 0.01 * np.diag(moments).mean() * np.eye(len(moments))
    inverse = np.linalg.inv(damped)
    decoded = np.empty_like(rest)
    for place, column in enumerate(order):
        decoded[:, place] = nearest(rest[:, place], column)
        error = (rest[:, place] - decoded[:, place]) / inverse[0, 0]
        rest[:, place + 1 :] -= np.outer(error, inverse[0, 1:])
        inverse = (inverse - np.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    back = np.empty_like(decoded)
    back[:, order] = decoded
    return back


@pytest.mark.parametrize("width", [24, in_turn.PANEL + 88])
def test_rounding_with_second_moments_is_gptq(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """More rows than at a time, and more columns than in a panel."""
    monkeypatch.setattr(row_rounding, "ROWS", 8)
    delta, x = gauss((18, width), scale=1.0), inputs(width)
    moments = second_moments(x)
    parts, decoded = round_trip(
        Quantized(bits=3, group_size=16), delta, context(torch.float32, 5, moments)
    )
    levels = np.arange(8) - 3.5
    scales = np.repeat(double(parts["scales"]), 16, axis=1)[:, :width]

    def nearest(values: Any, column: int) -> Any:
        scaled = scales[:, column, None] * levels
        return scaled[np.arange(18), np.abs(scaled - values[:, None]).argmin(1)]

    expected = gptq(double(delta), double(moments), nearest)
    same = np.isclose(double(decoded), expected, atol=1e-5)
    assert same.mean() > 0.98  # single precision may fall to the other side of a border
    lost = [np.linalg.norm(double(x) @ (y - double(delta)).T) for y in (double(decoded), expected)]
    assert lost[0] == pytest.approx(lost[1], rel=0.02)


@pytest.mark.parametrize(
    "codec",
    [
        Quantized(bits=2),
        Quantized(bits=4, grid="normal"),
        Quantized(grid="ternary"),
        Quantized(bits=3, grid="affine", scale_bits=8),
        Quantized(bits=3, grid="learned", group_size=0),
    ],
    ids=lambda codec: codec.label,
)
def test_calibrated_rounding_hurts_outputs_less(codec: Quantized) -> None:
    """On inputs that were not calibrated with, too."""
    delta, seen, fresh = gauss((48, 96)), inputs(96, 600, 3), None
    x = inputs(96, 1200, 3)
    seen, fresh = x[:600], x[600:]
    known = context(torch.bfloat16, 5, second_moments(seen))
    rough = context(torch.bfloat16, 5, second_moments(seen).diagonal())
    plain = output_error(codec, delta, context(torch.bfloat16), fresh)
    assert output_error(codec, delta, known, fresh) < 0.7 * plain
    assert output_error(codec, delta, rough, fresh) < 1.0 * plain


def test_trits_that_are_none_are_refused() -> None:
    codec = Quantized(grid="ternary")
    parts, _ = round_trip(codec, gauss((3, 8)), context())
    parts["codes"][1] = 243
    with pytest.raises(CodecError, match="damaged"):
        codec.decode(parts, (3, 8), context())
