"""mxfp4: numbers of every code under every scale, and the nearest code of every number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.messages import raises_saying
from support.quantized_references import (
    EVERY_BYTE,
    FP4_MEANINGS,
    UNHURRIED,
    e2m1,
    nearest,
)

from ders_core.checkpoint.quantized import mxfp4
from ders_core.errors import CheckpointError


def every_scale(scales: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Every byte under every one of the scales: blocks [S, 16, 16], scales [S, 16]"""
    numbers = torch.tensor(list(scales), dtype=torch.uint8)[:, None].expand(-1, 16).contiguous()
    return EVERY_BYTE.expand(len(scales), 16, 16).contiguous(), numbers


def test_mxfp4_every_code_under_every_scale() -> None:
    blocks, scales = every_scale(range(253))
    values = mxfp4.dequantize(blocks, scales)
    assert values.shape == (253, 512)
    for row, scale in enumerate(range(253)):
        wanted = [
            e2m1(code) * 2.0 ** (scale - 127)
            for byte in range(256)
            for code in (byte & 15, byte >> 4)
        ]
        assert values[row].tolist() == wanted
        assert values[row].signbit().tolist() == [math.copysign(1, w) < 0 for w in wanted]
    rounded = values.bfloat16()
    assert torch.equal(rounded.float(), values)
    assert torch.equal(mxfp4.quantize(values, scales), blocks)
    assert torch.equal(mxfp4.quantize(rounded, scales), blocks)


def test_mxfp4_agrees_with_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    source = torch.Generator().manual_seed(3)
    blocks = torch.randint(256, (3, 10, 4, 16), dtype=torch.uint8, generator=source)
    scales = torch.randint(90, 140, (3, 10, 4), dtype=torch.uint8, generator=source)
    reference = convert_moe_packed_tensors(blocks, scales)  # [E, in, out]
    ours = mxfp4.dequantize(blocks, scales)
    assert ours.shape == (3, 10, 128)
    assert torch.equal(ours.bfloat16(), reference.transpose(1, 2))
    assert torch.equal(mxfp4.quantize(reference.transpose(1, 2), scales), blocks)
    assert torch.equal(mxfp4.dequantize(blocks[1, 2:5], scales[1, 2:5]), ours[1, 2:5])


@UNHURRIED
@given(value=st.floats(width=32, allow_nan=False), scale=st.integers(0, 254))
def test_mxfp4_rounds_to_the_nearest_code(value: float, scale: int) -> None:
    blocks = mxfp4.quantize(torch.full((32,), value), torch.tensor([scale], dtype=torch.uint8))
    limited = max(-6.0, min(6.0, value / 2.0 ** (scale - 127)))
    code = nearest(limited, FP4_MEANINGS)
    assert blocks.unique().tolist() == [code | code << 4]


def test_mxfp4_ties_go_to_the_even_code() -> None:
    ties = torch.zeros(32)
    ties[:14] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]).repeat(2)
    ties[7:14].neg_()
    scale = torch.tensor([127], dtype=torch.uint8)
    numbers = mxfp4.dequantize(mxfp4.quantize(ties, scale), scale)[:14]
    even = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert numbers.tolist() == even + [-number for number in even]


def test_mxfp4_saturates_and_refuses_nan() -> None:
    scale = torch.tensor([127], dtype=torch.uint8)
    values = torch.tensor([100.0, -torch.inf]).repeat(16)
    assert mxfp4.quantize(values, scale).unique().tolist() == [0x7 | 0xF << 4]
    values[3] = torch.nan
    with raises_saying(CheckpointError, "NaN"):
        mxfp4.quantize(values, scale)
    assert mxfp4.dequantize(EVERY_BYTE[:1], torch.tensor([255], dtype=torch.uint8)).isnan().all()


def test_mxfp4_work_in_chunks_is_the_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, scales = every_scale(range(100, 110))
    values = mxfp4.dequantize(blocks, scales)
    monkeypatch.setattr(mxfp4, "CHUNK", 7 * 32)
    assert torch.equal(mxfp4.dequantize(blocks, scales), values)
    assert torch.equal(mxfp4.quantize(values, scales), blocks)
