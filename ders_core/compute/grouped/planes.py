"""Grouped products with codes in bit planes or in trits: see `codecs.coding.packing`."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from ders_core.compute.grouped.calls import GroupedCall, GroupedProducts
from ders_core.compute.grouped.products import add_to, inputs_of, launch
from ders_core.later import torch


@dataclass(frozen=True)
class GroupedPlanes(GroupedProducts):
    """W = scale · level (+ offset), of blocks of `size` neighbours in a row.

    codes: uint8 `[experts, bytes]`, of bits each, or trits where bits is None. scales: `[experts,
    out, blocks]`; where there are tops `[experts, out]`, so many 255ths of their row's. offsets:
    as scales, or None. levels: float32 `[experts or 1, n]`; None: code + start. All contiguous.
    """

    codes: torch.Tensor
    bits: int | None
    scales: torch.Tensor
    size: int
    start: float
    tops: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    levels: torch.Tensor | None = None

    def add(self, call: GroupedCall, y: torch.Tensor, column: int) -> None:
        out, width = self.scales.shape[1], call.x.shape[1]
        launch(
            _multiply,
            out,
            call,
            y,
            column,
            codes=self.codes,
            bytes_each=self.codes.shape[1],
            plane=(out * width + 7) // 8,
            scales=self.scales,
            tops=self.tops,
            offsets=self.offsets,
            blocks=self.scales.shape[2],
            size=self.size,
            levels=self.levels,
            levels_each=self._levels_each,
            start=self.start,
            bits=self.bits or 0,
        )

    @property
    def _levels_each(self) -> int:
        """From one expert's levels to those of the next."""
        if self.levels is None or len(self.levels) == 1:
            return 0
        return self.levels.shape[1]


@triton.jit  # type: ignore[untyped-decorator]
def _codes(codes, places, inside, plane, bits: tl.constexpr):  # type: ignore[no-untyped-def]
    """The codes at places of a matrix, int32."""
    if bits == 0:
        byte = tl.load(codes + places // 5, mask=inside, other=0).to(tl.int32)
        digit = places % 5
        for power in tl.static_range(4):
            byte = tl.where(digit > power, byte // 3, byte)
        found = byte % 3
    else:
        found = tl.zeros(places.shape, tl.int32)
        for bit in tl.static_range(bits):
            byte = tl.load(codes + bit * plane + (places >> 3), mask=inside, other=0).to(tl.int32)
            found |= ((byte >> (places & 7).to(tl.int32)) & 1) << bit
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x,
    y,
    pairs,
    experts,
    shares,
    codes,
    bytes_each,
    plane,
    scales,
    tops,
    offsets,
    blocks,
    size,
    levels,
    levels_each,
    start,
    each,
    out,
    width,
    columns,
    column,
    bits: tl.constexpr,
    pairs_taken: tl.constexpr,
    rows_taken: tl.constexpr,
    step: tl.constexpr,
    factors: tl.constexpr,
):
    expert = tl.load(experts + tl.program_id(0)).to(tl.int64)
    if expert >= 0:
        pair = tl.load(pairs + tl.program_id(0) * pairs_taken + tl.arange(0, pairs_taken))
        rows = tl.program_id(1) * rows_taken + tl.arange(0, rows_taken)
        lines = rows.to(tl.int64)[:, None]
        sums = tl.zeros((pairs_taken, rows_taken), tl.float32)
        for first in range(0, width, step):
            entries = first + tl.arange(0, step)
            inside = (rows < out)[:, None] & (entries < width)[None, :]
            places = lines * width + entries[None, :]
            code = _codes(codes + expert * bytes_each, places, inside, plane, bits)
            if levels is not None:
                level = tl.load(levels + expert * levels_each + code)
            else:
                level = code.to(tl.float32) + start
            block = (expert * out + lines) * blocks + (entries // size)[None, :]
            scale = tl.load(scales + block, mask=inside, other=0).to(tl.float32)
            if tops is not None:
                top = tl.load(tops + expert * out + rows, mask=rows < out, other=0.0)
                scale = scale * (top.to(tl.float32) / 255)[:, None]
            matrix = level * scale
            if offsets is not None:
                matrix += tl.load(offsets + block, mask=inside, other=0.0).to(tl.float32)
            taken = inputs_of(x, pair, each, width, entries).to(factors)
            sums += tl.dot(taken, tl.trans(matrix.to(factors)), input_precision="ieee")
        add_to(y, sums, pair, rows, shares, out, columns, column)
