"""Scales and packed codes of a weight in one pass, where loops can do that: the deltas and codes of
a few rows at a time stay in cache. The bits are those of `scales.py`, `codes.py` and `packing.py`,
one after another."""

from __future__ import annotations

from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.levels import Levels
from ders_core.codecs.fitting.scales import search_arguments, weights_of_blocks
from ders_core.compute import kernels
from ders_core.later import np, torch


def can_pass_once(
    weight: torch.Tensor, base: torch.Tensor, dtype: torch.dtype, blocks: Blocks
) -> bool:
    """Whether `quantized_in_one_pass` can be called: blocks fill rows, and loops can run."""
    fills = blocks.count * blocks.size == blocks.width and weight.numel() > 0
    return fills and kernels.is_kind(dtype) and kernels.takes_stored(weight, base)


def quantized_in_one_pass(
    weight: torch.Tensor,
    base: torch.Tensor,
    weights: torch.Tensor | None,
    levels: Levels,
    blocks: Blocks,
    target: float | None,
    dtype: torch.dtype,
    bits: int | None,
    packed: torch.Tensor,
) -> torch.Tensor:
    """The scale of each block, `[out, blocks]` in `dtype`; fills `packed` with codes.

    weight, base: `[out, in]`. weights: of errors in each column, float32 `[1, in]`; None for 1.
    target: the gain that scales are multiplied for; None to leave them. bits: None for trits.
    """
    from ders_core.compute.kernels.quantize import quantize

    split = blocks.split(weight[:1])
    heights = weights_of_blocks(blocks.split_weights(weights, weight.device), split)
    assert heights is not None
    of_columns = np.empty(0, np.float32) if weights is None else weights.view(-1).numpy()
    scales = torch.empty(len(weight), blocks.count, dtype=dtype)
    quantize(
        kernels.bits(weight),
        kernels.bits(base),
        kernels.kind_of(weight.dtype),
        heights.float().numpy(),
        search_arguments(levels),
        of_columns,
        np.float32(target or 0.0),
        np.float32(torch.finfo(torch.float32).tiny),
        kernels.bits(scales),
        kernels.kind_of(dtype),
        bits or 0,
        packed.numpy(),
    )
    return scales
