"""The largest entries of a matrix, without sorting it: an exact two-pass radix histogram."""

from __future__ import annotations

import torch


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Positions of the `count` entries of largest magnitude, ascending; int64 `[count]`.

    values: float32, any shape, finite. Ties at the threshold go to the lowest positions, so the
    result does not depend on device or threads. Non-negative floats order as their bits do.
    """
    if count <= 0:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    keys = values.reshape(-1).abs().view(torch.int32)
    high = keys >> 16
    bucket, above = _descend(torch.bincount(high, minlength=1 << 15), count)
    inside = keys[high == bucket] & 0xFFFF
    low, more = _descend(torch.bincount(inside, minlength=1 << 16), count - above)
    threshold = (bucket << 16) | low
    ties = (keys == threshold).nonzero().flatten()[: count - above - more]
    chosen = keys > threshold
    chosen[ties] = True
    return chosen.nonzero().flatten()


def largest_of_rows(values: torch.Tensor, count: int) -> torch.Tensor:
    """Flat positions of the `count` entries of largest magnitude in each row, ascending; int64.

    values: float32 `[rows, columns]`, finite. Ties go to the lowest columns.
    """
    rows, width = values.shape
    order = values.abs().sort(dim=1, descending=True, stable=True).indices[:, :count]
    first = torch.arange(rows, device=values.device).unsqueeze(1) * width
    return (order.sort(dim=1).values + first).view(-1)


def _descend(histogram: torch.Tensor, count: int) -> tuple[int, int]:
    """The highest bucket at which the count of entries from above reaches `count`, and how many
    lie strictly above it."""
    from_above = histogram.flip(0).cumsum(0)
    index = int(torch.searchsorted(from_above, count))
    bucket = histogram.numel() - 1 - index
    return bucket, int(from_above[index - 1]) if index else 0
