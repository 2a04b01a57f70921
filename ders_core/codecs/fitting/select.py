"""The largest entries of a matrix, without sorting it: an exact two-pass radix histogram."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ders_core.compute import kernels
from ders_core.compute.pieces import at_least, chunk_values, pieces
from ders_core.later import np, torch


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Positions of the `count` entries of largest magnitude, ascending; int64 `[count]`.

    values: float32, any shape, finite. Ties at the threshold go to the lowest positions, so the
    result does not depend on device or threads. Non-negative floats order as their bits do.
    """
    flat = values.reshape(-1)
    return largest_read(flat.__getitem__, flat.numel(), count, flat.device)


def largest_read(
    read: Callable[[slice], torch.Tensor], size: int, count: int, device: torch.device
) -> torch.Tensor:
    """The same for `size` values that `read` gives a piece at a time, float32 `[n]`. Each piece is
    read twice, and the next one may overwrite it."""
    if count <= 0:
        return torch.empty(0, dtype=torch.int64, device=device)
    parts = list(pieces(size, chunk_values(device)))
    if kernels.can_run(device):
        return _found_by_loops(read, parts, count)
    room = torch.empty(2, parts[0].stop, dtype=torch.int32, device=device)

    def keys_of(piece: slice) -> torch.Tensor:
        """int32 that order as magnitudes do."""
        bits = read(piece).view(torch.int32)
        return torch.bitwise_and(bits, 0x7FFFFFFF, out=room[0, : bits.numel()])

    histogram = torch.zeros(1 << 15, dtype=torch.int64, device=device)
    for piece in parts:
        keys = keys_of(piece)
        high = torch.bitwise_right_shift(keys, 16, out=room[1, : keys.numel()])
        histogram += torch.bincount(high, minlength=1 << 15)
    bucket, above = _descend(histogram, count)
    candidates, inside = [], []
    for piece in parts:
        keys = keys_of(piece)
        places = at_least(keys, bucket << 16)
        near = keys.index_select(0, places)
        inside.append(near[near >> 16 == bucket] & 0xFFFF)
        candidates.append((places.to(torch.int32), near))
    low, more = _descend(torch.bincount(torch.cat(inside), minlength=1 << 16), count - above)
    threshold, ties = (bucket << 16) | low, count - above - more
    chosen, begin = torch.empty(count, dtype=torch.int64, device=device), 0
    for piece, (places, near) in zip(parts, candidates, strict=True):
        taken = near > threshold
        equal = (near == threshold).nonzero().flatten()[:ties]
        taken[equal] = True
        ties -= equal.numel()
        kept = places[taken]
        end = begin + kept.numel()
        torch.add(kept, piece.start, out=chosen[begin:end])
        begin = end
    return chosen


def _found_by_loops(
    read: Callable[[slice], torch.Tensor], parts: Sequence[slice], count: int
) -> torch.Tensor:
    """As `largest_read`."""
    from ders_core.compute.kernels import largest as loops
    from ders_core.compute.kernels.magnitudes import count_magnitudes

    high = torch.zeros(1 << 15, dtype=torch.int64)
    for piece in parts:
        bits = kernels.bits(read(piece).contiguous())
        count_magnitudes(bits, 16, high.numpy())
    bucket, above = _descend(high, count)
    near = above + int(high[bucket])
    places, keys, filled = np.empty(near, dtype=np.int64), np.empty(near, dtype=np.uint32), 0
    for piece in parts:
        values = read(piece).contiguous().numpy()
        least = np.uint32(bucket << 16)
        filled = loops.collect(values, least, piece.start, filled, places, keys)
    low = torch.zeros(1 << 16, dtype=torch.int64)
    loops.count_low(keys, np.uint32(bucket), low.numpy())
    rest, more = _descend(low, count - above)
    chosen = torch.empty(count, dtype=torch.int64)
    threshold, ties = np.uint32(bucket << 16 | rest), count - above - more
    loops.choose(keys, threshold, ties, places, chosen.numpy())
    return chosen


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
    are strictly above it."""
    from_above = histogram.flip(0).cumsum(0)
    index = int(torch.searchsorted(from_above, count))
    bucket = histogram.numel() - 1 - index
    return bucket, int(from_above[index - 1]) if index else 0
