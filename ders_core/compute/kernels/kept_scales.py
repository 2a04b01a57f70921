"""Scales and offsets as they are kept beside codes, as `codecs.fitting.stored_scales` says.

kind: of `floats`, of the dtype of the model.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.floats import narrow, widen
from ders_core.compute.kernels.loop import loop

FULL_SCALE = np.float32(255)

Kept = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]
"""What a matrix keeps, whole or of some rows: bits of its scales `[out, blocks]`; or shares of a
row's largest scale, uint8 `[out, blocks]`, and bits of that, `[out]`; bits of offsets `[out,
blocks]`; the kind of these bits. What is not kept has no rows."""


@loop
def keep_floats(values: np.ndarray, kind: int, kept: np.ndarray) -> None:
    """kept: get the bits of values, float32 `[r, blocks]`, which become what is kept."""
    for row in range(values.shape[0]):
        for block in range(values.shape[1]):
            bits = narrow(values[row, block], kind)
            kept[row, block] = bits
            values[row, block] = widen(bits, kind)


@loop
def keep_shares(scales: np.ndarray, kind: int, shares: np.ndarray, tops: np.ndarray) -> None:
    """shares, tops: get 255ths of the largest scale of each row of scales, float32 `[r, blocks]`,
    and its bits; scales become what is kept."""
    zero, one = np.float32(0), np.float32(1)
    for row in range(scales.shape[0]):
        largest = scales[row, 0]
        for block in range(1, scales.shape[1]):
            scale = scales[row, block]
            largest = scale if scale > largest or np.isnan(scale) else largest
        bits = narrow(largest, kind)
        tops[row] = bits
        top = widen(bits, kind)
        divisor, unit = top if top > zero else one, np.float32(top / FULL_SCALE)
        for block in range(scales.shape[1]):
            scale = scales[row, block]
            share = np.rint(np.float32(np.float32(scale / divisor) * FULL_SCALE))
            share = min(share, FULL_SCALE) if share > zero else zero  # also if it is no number
            share = max(share, one) if scale > zero else share
            shares[row, block] = np.uint8(np.int32(share))
            scales[row, block] = share * unit


@loop
def keep(scales: np.ndarray, offsets: np.ndarray, kept: Kept, first: int) -> None:
    """Scales and offsets, float32 `[r, blocks]`, of rows from `first` on become what is kept of
    them. offsets: `[0, 0]` where there are none."""
    of_floats, shares, tops, of_offsets, kind = kept
    last = first + scales.shape[0]
    if tops.size > 0:
        keep_shares(scales, kind, shares[first:last], tops[first:last])
    else:
        keep_floats(scales, kind, of_floats[first:last])
    if of_offsets.shape[0] > 0:
        keep_floats(offsets, kind, of_offsets[first:last])
