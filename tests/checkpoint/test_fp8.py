"""fp8: numbers of every code under every scale, and the nearest code of every number."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.quantized_references import (
    ALL_FP8,
    FP8_MEANINGS,
    UNHURRIED,
    by_element,
    nearest,
    random_codes,
    random_scales,
    same,
)

from ders_core.checkpoint.quantized import fp8


@UNHURRIED
@given(
    out=st.integers(1, 9),
    width=st.integers(1, 9),
    high=st.integers(1, 11),
    wide=st.integers(1, 11),
    seed=st.integers(0, 2**31),
)
def test_fp8_of_any_shape_and_block(out: int, width: int, high: int, wide: int, seed: int) -> None:
    block = (high, wide)
    codes = random_codes((out, width), seed)
    scales = random_scales((-(-out // high), -(-width // wide)), seed)
    values = fp8.dequantize(codes, scales, block)
    assert values.dtype == torch.float32
    assert torch.equal(values, by_element(codes, scales, block).float())
    assert same(fp8.quantize(values, scales, block), codes)
    first = seed % out
    rows = slice(first, None)
    top = first // high
    part = fp8.dequantize(codes[rows], scales[top:], block, first - top * high)
    assert torch.equal(part, values[rows])
    assert same(fp8.quantize(part, scales[top:], block, first - top * high), codes[rows])


@UNHURRIED
@given(
    scale=st.floats(2.0**-123, 2.0**119, width=32) | st.floats(-(2.0**119), -(2.0**-123), width=32),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_finite_code_survives_every_usable_scale(scale: float, dtype: torch.dtype) -> None:
    scales, block = torch.tensor([[scale]]), (1, len(ALL_FP8))
    values = fp8.dequantize(ALL_FP8[None], scales, block).to(dtype)
    assert same(fp8.quantize(values, scales, block), ALL_FP8[None])


def test_every_finite_code_survives_scales_of_all_magnitudes() -> None:
    mantissas = torch.cat(
        [torch.linspace(1, 2, 257)[:-1], torch.tensor([1 + 2.0**-23, 2 - 2.0**-23])]
    )
    block = (1, len(ALL_FP8))
    codes = ALL_FP8.expand(len(mantissas), -1)
    for least, dtype in ((-139, torch.float32), (-123, torch.bfloat16)):
        for exponent in range(least, 119):
            scales = torch.ldexp(mantissas, torch.tensor(exponent))[:, None]
            values = fp8.dequantize(codes, scales, block).to(dtype)
            assert same(fp8.quantize(values, scales, block), codes), exponent


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e8m0fnu])
def test_scales_of_other_dtypes_mean_what_they_say(dtype: torch.dtype) -> None:
    codes = random_codes((6, 10), 1)
    scales = random_scales((2, 3), 2).clamp_min(1e-4).to(dtype)
    values = fp8.dequantize(codes, scales, (4, 4))
    assert torch.equal(values, by_element(codes, scales.float(), (4, 4)).float())
    assert same(fp8.quantize(values.bfloat16(), scales, (4, 4)), codes)
    if dtype == torch.float8_e8m0fnu:
        assert torch.equal(fp8.dequantize(codes, scales.view(torch.uint8), (4, 4)), values)


@UNHURRIED
@given(
    value=st.floats(width=32, allow_nan=False),
    scale=st.floats(2.0**-100, 2.0**100, width=32),
)
def test_fp8_rounds_to_the_nearest_code(value: float, scale: float) -> None:
    code = fp8.quantize(torch.tensor([[value]]), torch.tensor([[scale]]), (1, 1))
    meaning = FP8_MEANINGS[int(code.view(torch.uint8))]
    limited = max(-448.0, min(448.0, value / scale))
    best = FP8_MEANINGS[nearest(limited, FP8_MEANINGS)]
    # the quotient is rounded to float32 first: either side of a tie may win within that error
    assert abs(meaning - limited) <= abs(best - limited) * (1 + 2**-20) + abs(limited) * 2**-22
    assert math.copysign(1, meaning) == math.copysign(1, value)


def test_fp8_ties_go_to_the_even_code() -> None:
    sizes = [FP8_MEANINGS[code] for code in range(127)]
    middles = [(a + b) / 2 for a, b in pairwise(sizes)]
    signed = torch.tensor([middles, [-middle for middle in middles]])
    codes = fp8.quantize(signed, torch.tensor([[1.0]]), (2, len(middles))).view(torch.uint8)
    even = [code + code % 2 for code in range(126)]
    assert codes.tolist() == [even, [code | 128 for code in even]]


def test_fp8_beyond_the_range_saturates_and_nan_stays_nan() -> None:
    values = torch.tensor([[460.0, 470.0, 1e38, torch.inf, -torch.inf, -500.0, torch.nan]])
    codes = fp8.quantize(values, torch.tensor([[1.0]]), (1, 7)).float()
    assert codes[0, :6].tolist() == [448.0, 448.0, 448.0, 448.0, -448.0, -448.0]
    assert codes[0, 6].isnan()
    nothing = fp8.quantize(values[:, :6], torch.tensor([[0.0]]), (1, 6))
    assert nothing.view(torch.uint8).tolist() == [[0, 0, 0, 0, 128, 128]]


def test_fp8_leaves_its_arguments_alone() -> None:
    values = torch.full((3, 5), 2.0)
    scales = torch.tensor([[0.5]])
    fp8.quantize(values, scales, (8, 8))
    assert torch.equal(values, torch.full((3, 5), 2.0))
    assert scales.tolist() == [[0.5]]


def test_fp8_work_in_chunks_is_the_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, scales = random_codes((50, 20), 5), random_scales((8, 3), 6)
    values = fp8.dequantize(codes, scales, (7, 8), 3)
    monkeypatch.setattr(fp8, "CHUNK", 60)
    assert same(fp8.quantize(values, scales, (7, 8), 3), codes)


@pytest.mark.parametrize("block", [(128, 128), (16, 64)])
def test_fp8_agrees_with_transformers(block: tuple[int, int]) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
    from transformers.utils.quantization_config import FineGrainedFP8Config

    class Quantizer:
        quantization_config = FineGrainedFP8Config(weight_block_size=block)

    original = torch.randn(256, 384, generator=torch.Generator().manual_seed(0)) * 0.02
    stored = Fp8Quantize(Quantizer())._quantize_one("a.weight", original)
    codes, scales = stored["a.weight"], stored["a.weight_scale_inv"]
    reference = Fp8Dequantize(Quantizer())._dequantize_one(codes, scales)
    ours = fp8.dequantize(codes, scales, block)
    assert torch.equal(ours, reference)
    half = Fp8Dequantize(Quantizer())._dequantize_one(codes, scales, torch.bfloat16)
    assert torch.equal(ours.bfloat16(), half)
    assert same(fp8.quantize(half, scales, block), codes)
