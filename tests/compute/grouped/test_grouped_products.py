"""Kernels for a GPU multiply with what the codecs decode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.codec_support import gauss
from support.interpreted import kernel_device as kernel_device

from ders_core.codecs import DeltaCodec, EncodeContext, make_codec
from ders_core.codecs.routed import CodedExperts
from ders_core.compute.grouped.blocks import PairBlocks

EXPERTS, TOKENS = 3, 21
SHAPES = [(64, 64), (70, 136), (3, 5)]
"""Of whole tiles; beyond one tile in both directions; and below one."""

CODECS: list[dict[str, Any]] = [
    *({"codec": "quantized", "bits": bits, "group_size": 16} for bits in range(1, 9)),
    {"codec": "quantized", "bits": 2, "group_size": 5},
    {"codec": "quantized", "bits": 3, "group_size": 0, "scale_bits": 8},
    {"codec": "quantized", "bits": 2, "grid": "affine", "group_size": 24},
    {"codec": "quantized", "bits": 3, "grid": "normal", "group_size": 16},
    {"codec": "quantized", "bits": 2, "grid": "learned", "group_size": 16},
    {"codec": "quantized", "grid": "ternary", "group_size": 16},
    {"codec": "quantized", "grid": "ternary", "group_size": 7, "scale_bits": 8},
    {"codec": "lowrank", "rank": 1},
    {"codec": "lowrank", "rank": 70},
]


def coded(codec: DeltaCodec, shape: tuple[int, int], dtype: torch.dtype) -> CodedExperts:
    contexts = [EncodeContext(dtype, seed) for seed in range(EXPERTS)]
    each = [codec.encode(gauss(shape, seed), context) for seed, context in enumerate(contexts)]
    stacked = {name: torch.stack([parts[name] for parts in each]) for name in each[0]}
    return CodedExperts(stacked, shape, contexts)


def decoded(codec: DeltaCodec, experts: CodedExperts) -> torch.Tensor:
    """In float64 `[experts, out, in]`."""
    matrices = [
        codec.decode({name: part[n] for name, part in experts.parts.items()}, experts.shape, each)
        for n, each in enumerate(experts.contexts)
    ]
    return torch.stack(matrices).double()


def moved(experts: CodedExperts, device: torch.device) -> CodedExperts:
    parts = {name: part.to(device) for name, part in experts.parts.items()}
    return CodedExperts(parts, experts.shape, experts.contexts)


def check(
    codec: DeltaCodec, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, each: int
) -> None:
    """More pairs of one expert than a block has, none of another, some of no expert; beside what
    is in y already."""
    from ders_core.compute.grouped.products import GroupedCall

    chosen = torch.tensor([2] * 17 + [-1, 0, 2, EXPERTS])[:, None].repeat(1, each).flatten()
    experts = coded(codec, shape, torch.float32 if dtype is torch.float32 else torch.bfloat16)
    products = codec.grouped(moved(experts, device))
    assert products is not None
    x = gauss((TOKENS, shape[1]), 9).to(dtype)
    shares = torch.rand(len(chosen), generator=torch.Generator().manual_seed(4))
    before = gauss((len(chosen), shape[0] + 3), 11)
    y = before.clone().to(device)
    blocks = PairBlocks.of(chosen.to(device), EXPERTS)
    products.add(GroupedCall(x.to(device), each, blocks, shares.to(device)), y, 2)
    expected, matrices = before.double(), decoded(codec, experts)
    for pair, expert in enumerate(chosen.tolist()):
        if 0 <= expert < EXPERTS:
            product = matrices[expert] @ x[pair // each].double()
            expected[pair, 2 : 2 + shape[0]] += shares[pair].double() * product
    rounding = 1e-6 if dtype is torch.float32 else 2 * torch.finfo(dtype).eps
    largest = float((expected - before).abs().max())
    assert float((y.cpu() - expected).abs().max()) <= rounding * largest + 1e-7


@pytest.mark.parametrize("fields", CODECS, ids=lambda fields: make_codec(fields).label)
def test_products_are_those_of_decoded_deltas(
    fields: dict[str, Any], kernel_device: torch.device
) -> None:
    codec = make_codec(fields)
    assert isinstance(codec, DeltaCodec)
    for number, shape in enumerate(SHAPES):
        check(codec, shape, kernel_device, torch.float32, each=1 + number % 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fields", [CODECS[1], CODECS[-1]], ids=["planes", "factors"])
def test_inputs_of_16_bits(
    fields: dict[str, Any], dtype: torch.dtype, kernel_device: torch.device
) -> None:
    codec = make_codec(fields)
    assert isinstance(codec, DeltaCodec)
    check(codec, SHAPES[1], kernel_device, dtype, each=2)
