"""What all kernels of grouped products have in common."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ders_core.compute.grouped.blocks import SIZE
from ders_core.compute.grouped.calls import GroupedCall
from ders_core.later import torch

ROWS, STEP = 64, 64
"""Rows of a matrix that a program takes, and entries of a row at a time."""


def launch(
    kernel: Any, out: int, call: GroupedCall, y: torch.Tensor, column: int, **others: Any
) -> None:
    """Run a kernel for all blocks of pairs and all `out` rows. others: its other arguments; those
    of tiles may differ from the usual ones."""
    blocks, count = call.blocks, len(call.blocks.experts)
    if not count or not out:
        return
    arguments = {
        "x": call.x,
        "y": y,
        "pairs": blocks.pairs,
        "experts": blocks.experts,
        "shares": call.shares,
        "each": call.each,
        "out": out,
        "width": call.x.shape[1],
        "columns": y.shape[1],
        "column": column,
        "pairs_taken": SIZE,
        "rows_taken": ROWS,
        "step": STEP,
        "factors": _factors(call.x.dtype),
        **others,
    }
    kernel[(count, triton.cdiv(out, arguments["rows_taken"]))](**arguments)


def _factors(dtype: torch.dtype) -> Any:
    """The dtype in which entries are multiplied with inputs of this one. Triton's interpreter
    takes the bits of bfloat16 for numbers."""
    if dtype is torch.float16:
        return tl.float16
    is_interpreted = triton.knobs.runtime.interpret
    return tl.bfloat16 if dtype is torch.bfloat16 and not is_interpreted else tl.float32


@triton.jit
def inputs_of(x, pairs, each, width, entries):  # type: ignore[no-untyped-def]
    """The inputs of some pairs `[pairs, entries]`, 0 beyond a row and for no pair."""
    rows = tl.maximum(pairs, 0).to(tl.int64) // each
    inside = (pairs >= 0)[:, None] & (entries < width)[None, :]
    return tl.load(x + rows[:, None] * width + entries[None, :], mask=inside, other=0.0)


@triton.jit
def add_to(y, sums, pairs, rows, shares, out, columns, column):  # type: ignore[no-untyped-def]
    """y[pair, column + row] += share · sum. sums: `[pairs, rows]`."""
    if shares is not None:
        share = tl.load(shares + pairs, mask=pairs >= 0, other=0.0)
        sums = sums * share[:, None]
    inside = (pairs >= 0)[:, None] & (rows < out)[None, :]
    lines = tl.maximum(pairs, 0).to(tl.int64) * columns
    places = y + lines[:, None] + (column + rows)[None, :]
    tl.store(places, tl.load(places, mask=inside, other=0.0) + sums, mask=inside)
