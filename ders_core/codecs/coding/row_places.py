"""Places of a matrix's entries, so that each row is found and read by itself; in memory only.

A row is cut into cells of 2^low columns. Bits, the *marks*, go through the cells of all rows: a one
for each entry of a cell, and a zero at its end; of each entry's column the low bits are kept as
they are (Elias-Fano, see `positions`). `starts` counts the entries of all rows before. So their
bytes are known from the shape and the number of entries, and are few: 0.7 an entry of each ten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ders_core.codecs.coding.packing import BYTE, pack, unpack
from ders_core.codecs.coding.small_codes import pack_small, small_bytes, unpack_small
from ders_core.compute.pieces import at_least
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch

DENSE = 64
"""Entries fewer than one of so many have 8 low bits, others 4: what takes fewer bytes."""

WORD_BYTES = 8
"""Marks fill whole words."""


def low_bits(shape: tuple[int, int], count: int) -> int:
    """Of the columns of `count` entries."""
    return 4 if DENSE * count >= math.prod(shape) else 8


def place_specs(shape: tuple[int, int], count: int) -> dict[str, TensorSpec]:
    """What the places of `count` entries of a matrix `[out, in]` take."""
    low = low_bits(shape, count)
    words = -(-(count + _cells(shape, low)) // (BYTE * WORD_BYTES))
    return {
        "starts": TensorSpec(Dtype.I32, (shape[0] + 1,)),
        "marks": TensorSpec(Dtype.U8, (words * WORD_BYTES,)),
        "columns": TensorSpec(Dtype.U8, (small_bytes(count, low),)),
    }


def stored_places(places: torch.Tensor, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """places: int64 `[count]`, ascending and distinct, flat in a matrix `[out, in]`."""
    (out, width), count = shape, len(places)
    low = low_bits(shape, count)
    rows, columns = places // max(width, 1), places % max(width, 1)
    ends = torch.arange(out + 1, device=places.device) * width
    specs = place_specs(shape, count)
    marks = torch.zeros(BYTE * specs["marks"].nbytes, dtype=torch.uint8, device=places.device)
    before = rows * (_cells(shape, low) // max(out, 1)) + (columns >> low)
    marks[before + torch.arange(count, device=places.device)] = 1
    lowest = pack_small((columns & ((1 << low) - 1)).to(torch.uint8), low)
    return {
        "starts": torch.searchsorted(places, ends).to(torch.int32),
        "marks": pack(marks, 1),
        "columns": lowest,
    }


def read_places(
    parts: Mapping[str, torch.Tensor], shape: tuple[int, int], count: int
) -> torch.Tensor:
    """The inverse of `stored_places`."""
    low = low_bits(shape, count)
    bits = unpack(parts["marks"], 1, BYTE * parts["marks"].numel(), torch.uint8)
    cells = _marked(bits, count) - torch.arange(count, device=bits.device)
    lowest = unpack_small(parts["columns"], low, count)
    in_row = _cells(shape, low) // max(shape[0], 1)
    columns = (cells % max(in_row, 1) << low) | lowest
    return cells // max(in_row, 1) * shape[1] + columns


def _marked(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Indices (int64, ascending) of the `count` ones among `bits` `[n]`; no device is waited for,
    as it would be to learn how many there are."""
    if bits.device.type == "cpu":
        return at_least(bits, 1)
    ones = bits.cumsum(0, dtype=torch.int32)
    numbers = torch.arange(1, count + 1, dtype=torch.int32, device=bits.device)
    return torch.searchsorted(ones, numbers)


def _cells(shape: tuple[int, int], low: int) -> int:
    """Of all rows."""
    return shape[0] * -(-shape[1] // (1 << low))
