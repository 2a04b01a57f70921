"""Numbers by which rows of equal values are known again."""

from __future__ import annotations

import torch

EMPTY = -1
"""The mark of a row of zeros."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_SLAB = 1 << 22
"""Values that are marked at once."""


def row_marks(x: torch.Tensor) -> torch.Tensor:
    """A number for each row `[n, m]`: int64 `[n]`, the same where all values are, and hardly
    elsewhere (one pair of rows in 2^63); `EMPTY` where all are zero. On x's device."""
    random = torch.Generator().manual_seed(1)
    factors = torch.randint(-(2**62), 2**62, (x.shape[1],), generator=random).to(x.device)
    marks = []
    for rows in x.split(max(_SLAB // x.shape[1], 1)):
        bits = rows.contiguous().view(_BITS[x.itemsize]).long()
        sums = (bits * factors).sum(1) & (2**63 - 1)  # integers wrap: nothing is rounded
        marks.append(torch.where((rows != 0).any(1), sums, EMPTY))
    return torch.cat(marks)
