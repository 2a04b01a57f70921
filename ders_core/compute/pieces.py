"""Large matrices in pieces that stay in cache, instead of whole ones in float32 beside them.

A fresh tensor of hundreds of megabytes costs more than what is computed in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

CHUNK = 1 << 17
"""Values at a time, on the CPU."""

ACCELERATOR_CHUNK = 1 << 24
"""Values at a time elsewhere: a piece is to keep a whole device busy."""


def chunk_values(device: torch.device, on_cpu: int | None = None) -> int:
    """How many values make a piece on this device."""
    own = CHUNK if on_cpu is None else on_cpu
    return own if device.type == "cpu" else max(own, ACCELERATOR_CHUNK)


def pieces(count: int, step: int) -> Iterator[slice]:
    """[0, count) in slices of `step`; the last one may be shorter."""
    for begin in range(0, count, step):
        yield slice(begin, min(begin + step, count))


def row_pieces(shape: Sequence[int], values: int) -> Iterator[slice]:
    """The rows of a matrix `[out, in]` in slices of about so many values."""
    out, width = shape
    return pieces(out, max(1, values // max(width, 1)))


def at_least(values: torch.Tensor, bound: float) -> torch.Tensor:
    """Where values `[n]` reach the bound, ascending: int64."""
    if values.device.type == "cpu":  # numpy compares and searches in a third of the time
        return torch.from_numpy(np.flatnonzero(values.numpy() >= bound))
    return (values >= bound).nonzero().flatten()


def largest_magnitude(values: torch.Tensor) -> float:
    """max |v|, without a tensor of magnitudes; 0 for none."""
    if not values.numel():
        return 0.0
    low, high = values.aminmax()
    return max(-float(low), float(high), 0.0)
