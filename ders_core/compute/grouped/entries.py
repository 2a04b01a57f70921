"""Grouped products with entries that are held row by row: see `codecs.coding.row_places`."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from ders_core.compute.grouped.calls import GroupedCall, GroupedProducts
from ders_core.compute.grouped.products import add_to, launch
from ders_core.later import torch

MARKS = 128
"""Marks of a row that a program reads at a time."""

SCALED = 128
"""Entries that share a scale."""


@dataclass(frozen=True)
class GroupedEntries(GroupedProducts):
    """starts: int32 `[experts, out + 1]`. marks, columns: uint8 `[experts, bytes]`. low: bits of a
    column in `columns`, 4 or 8. values: floats `[experts, count]`, times gain; or with levels,
    float32 `[experts, n]`, and scales, float32 `[experts, ⌈count / SCALED⌉]`, numbers of levels.
    """

    starts: torch.Tensor
    marks: torch.Tensor
    columns: torch.Tensor
    low: int
    values: torch.Tensor
    gain: float
    levels: torch.Tensor | None = None
    scales: torch.Tensor | None = None

    def add(self, call: GroupedCall, y: torch.Tensor, column: int) -> None:
        cells = -(-call.x.shape[1] // (1 << self.low))
        levels_each = 0 if self.levels is None else self.levels.shape[1]
        scales_each = 0 if self.scales is None else self.scales.shape[1]
        launch(
            _multiply,
            self.starts.shape[1] - 1,
            call,
            y,
            column,
            rows_taken=1,
            starts=self.starts,
            marks=self.marks,
            marks_each=self.marks.shape[1],
            entries=self.columns,
            entries_each=self.columns.shape[1],
            cells=cells,
            values=self.values,
            count=self.values.shape[1],
            levels=self.levels,
            levels_each=levels_each,
            scales=self.scales,
            scales_each=scales_each,
            gain=self.gain,
            low=self.low,
            step=MARKS,
            scaled=SCALED,
        )


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x,
    y,
    pairs,
    experts,
    shares,
    starts,
    marks,
    marks_each,
    entries,
    entries_each,
    cells,
    values,
    count,
    levels,
    levels_each,
    scales,
    scales_each,
    gain,
    each,
    out,
    width,
    columns,
    column,
    low: tl.constexpr,
    pairs_taken: tl.constexpr,
    rows_taken: tl.constexpr,
    step: tl.constexpr,
    scaled: tl.constexpr,
    factors: tl.constexpr,
):
    expert = tl.load(experts + tl.program_id(0)).to(tl.int64)
    if expert >= 0:
        pair = tl.load(pairs + tl.program_id(0) * pairs_taken + tl.arange(0, pairs_taken))
        lines = tl.maximum(pair, 0).to(tl.int64) // each * width
        row = tl.program_id(1)
        start = tl.load(starts + expert * (out + 1) + row)
        begin = start + row * cells
        end = tl.load(starts + expert * (out + 1) + row + 1) + (row + 1) * cells
        sums = tl.zeros((pairs_taken,), tl.float32)
        before = start
        for first in range(begin, end, step):
            mark = first + tl.arange(0, step)
            byte = tl.load(marks + expert * marks_each + (mark >> 3), mask=mark < end, other=0)
            flag = (byte.to(tl.int32) >> (mark & 7)) & 1
            flag = tl.where(mark < end, flag, 0)
            number = before + tl.cumsum(flag, 0) - flag
            is_entry = flag > 0
            if low == 4:
                byte = tl.load(entries + expert * entries_each + (number >> 1), mask=is_entry)
                lowest = (byte.to(tl.int32) >> ((number & 1) * 4)) & 15
            else:
                byte = tl.load(entries + expert * entries_each + number, mask=is_entry)
                lowest = byte.to(tl.int32)
            place = ((mark - begin - (number - start)) << low) | lowest
            value = tl.load(values + expert * count + number, mask=is_entry, other=0)
            if levels is not None:
                scale = scales + expert * scales_each + number // scaled
                value = tl.load(levels + expert * levels_each + value, mask=is_entry, other=0.0)
                value = value * tl.load(scale, mask=is_entry, other=0.0)
            inside = (pair >= 0)[:, None] & is_entry[None, :]
            taken = tl.load(x + lines[:, None] + place[None, :], mask=inside, other=0.0)
            weight = value.to(tl.float32) * gain
            sums += tl.sum(taken.to(tl.float32) * weight[None, :], 1)
            before += tl.sum(flag, 0)
        add_to(y, sums[:, None], pair, row + tl.arange(0, rows_taken), shares, out, columns, column)
