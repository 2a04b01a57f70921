"""Process large matrices in pieces that fit into the cache.

A float32 copy of a whole matrix is a fresh tensor of hundreds of megabytes, and touching it costs
more than the computation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ders_core.later import np, torch

CHUNK = 1 << 17
"""Values in a piece, on the CPU."""

ACCELERATOR_CHUNK = 1 << 24
"""Values in a piece on a GPU: one piece must keep the whole device busy."""


def chunk_values(device: torch.device, on_cpu: int | None = None) -> int:
    """How many values a piece has on this device. on_cpu: how many on the CPU, if not `CHUNK`."""
    values = CHUNK if on_cpu is None else on_cpu
    return values if device.type == "cpu" else max(values, ACCELERATOR_CHUNK)


def pieces(count: int, step: int) -> Iterator[slice]:
    """[0, count) in slices of `step`; the last one may be shorter."""
    for begin in range(0, count, step):
        yield slice(begin, min(begin + step, count))


def row_pieces(shape: Sequence[int], values: int) -> Iterator[slice]:
    """The rows of a matrix `[out, in]` in slices of about `values` values."""
    out, width = shape
    return pieces(out, max(1, values // max(width, 1)))


def at_least(values: torch.Tensor, bound: float) -> torch.Tensor:
    """Indices (int64, ascending) of the values `[n]` that are at least `bound`."""
    if values.device.type == "cpu":  # numpy takes a third of the time
        return torch.from_numpy(np.flatnonzero(values.numpy() >= bound))
    return (values >= bound).nonzero().flatten()


def largest_magnitude(values: torch.Tensor) -> float:
    """max |v|, without a tensor of magnitudes; 0 if there are no values."""
    if not values.numel():
        return 0.0
    low, high = values.aminmax()
    return max(-float(low), float(high), 0.0)
