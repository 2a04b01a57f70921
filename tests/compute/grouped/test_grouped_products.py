"""Kernels for a GPU multiply with what the codecs decode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.codec_support import gauss

from ders_core.codecs import DeltaCodec, EncodeContext, make_codec
from ders_core.codecs.routed import CodedExperts
from ders_core.compute.grouped.blocks import PairBlocks

EXPERTS, TOKENS = 3, 21
SHAPES = [(64, 64), (70, 136), (3, 12)]
"""Of whole tiles; beyond one tile in both directions; and below one."""

SHAPES_OF_ROWS = [(5, 264), (3, 12)]
"""For kernels that take a row at a time: with more marks than one step reads, and fewer."""

SPARSE = {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude"}

CODECS: list[dict[str, Any]] = [
    *({"codec": "quantized", "bits": bits, "group_size": 16} for bits in (1, 3, 8)),
    {"codec": "quantized", "bits": 2, "group_size": 5},
    {"codec": "quantized", "bits": 3, "group_size": 0, "scale_bits": 8},
    {"codec": "quantized", "bits": 2, "grid": "affine", "group_size": 24},
    {"codec": "quantized", "bits": 3, "grid": "normal", "group_size": 16},
    {"codec": "quantized", "bits": 2, "grid": "learned", "group_size": 16},
    {"codec": "quantized", "grid": "ternary", "group_size": 16},
    {"codec": "quantized", "grid": "ternary", "group_size": 7, "scale_bits": 8},
    {"codec": "lowrank", "rank": 1},
    {"codec": "sparse", "drop_rate": 0.9},
    {"codec": "sparse", "drop_rate": 0.985, "method": "magnitude"},
    {"codec": "sparse", "drop_rate": 0.3, "method": "magnitude", "value_bits": 4},
    {"codec": "sparse", "pattern": "2:4", "value_bits": 8},
    {"codec": "chain", "stages": [{"codec": "lowrank", "rank": 2}, SPARSE]},
    {"codec": "lowrank", "rank": 70},
]


def held_experts(
    codec: DeltaCodec, shape: tuple[int, int], dtype: torch.dtype
) -> tuple[DeltaCodec, CodedExperts, torch.Tensor]:
    """What a model holds, and what the codec decodes of the same, float64 `[experts, out, in]`."""
    contexts = [EncodeContext(dtype, seed) for seed in range(EXPERTS)]
    held, parts, decoded = codec.held_form(shape), [], []
    assert isinstance(held, DeltaCodec)
    for seed, context in enumerate(contexts):
        encoded = codec.encode(gauss(shape, seed), context)
        parts.append(codec.held_parts(encoded, shape, context))
        decoded.append(codec.decode(encoded, shape, context).double())
    stacked = {name: torch.stack([each[name] for each in parts]) for name in parts[0]}
    return held, CodedExperts(stacked, shape, contexts), torch.stack(decoded)


def moved(experts: CodedExperts, device: torch.device) -> CodedExperts:
    parts = {name: part.to(device) for name, part in experts.parts.items()}
    return CodedExperts(parts, experts.shape, experts.contexts)


def check(
    codec: DeltaCodec, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, each: int
) -> None:
    """More pairs of one expert than a block has, none of another, some of no expert; beside what
    is in y already."""
    from ders_core.compute.grouped.calls import GroupedCall

    chosen = torch.tensor([2] * 17 + [-1, 0, 2, EXPERTS])[:, None].repeat(1, each).flatten()
    stored = torch.float32 if dtype is torch.float32 else torch.bfloat16
    held, experts, matrices = held_experts(codec, shape, stored)
    products = held.grouped(moved(experts, device))
    assert products is not None
    x = gauss((TOKENS, shape[1]), 9).to(dtype)
    shares = torch.rand(len(chosen), generator=torch.Generator().manual_seed(4))
    before = gauss((len(chosen), shape[0] + 3), 11)
    y = before.clone().to(device)
    blocks = PairBlocks.of(chosen.to(device), EXPERTS)
    products.add(GroupedCall(x.to(device), each, blocks, shares.to(device)), y, 2)
    expected = before.double()
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
    takes_tiles = codec.name in ("quantized", "lowrank")
    for number, shape in enumerate(SHAPES if takes_tiles else SHAPES_OF_ROWS):
        check(codec, shape, kernel_device, torch.float32, each=1 + number % 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "fields", [CODECS[1], SPARSE, CODECS[-1]], ids=["planes", "entries", "factors"]
)
def test_inputs_of_16_bits(
    fields: dict[str, Any], dtype: torch.dtype, kernel_device: torch.device
) -> None:
    codec = make_codec(fields)
    assert isinstance(codec, DeltaCodec)
    shape = SHAPES_OF_ROWS[0] if codec.name == "sparse" else SHAPES[1]
    check(codec, shape, kernel_device, dtype, each=2)
