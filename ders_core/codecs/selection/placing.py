"""Values of kept entries at their flat places in a matrix, a piece of them at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

from ders_core.codecs.delta_entries import Entries
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import at_least
from ders_core.later import torch


class Places(ABC):
    """Flat places in a matrix, int64, a piece at a time, in the order of the stored values; −1
    where a value has no entry. has_gaps: whether there may be such."""

    has_gaps: bool = False

    @abstractmethod
    def __iter__(self) -> Iterator[torch.Tensor]: ...

    def kept(self) -> Places:
        """The same, to be gone through more than once."""
        return PlacesInPieces([*self], has_gaps=self.has_gaps)

    def between(self, begin: int, end: int) -> tuple[int, Iterable[torch.Tensor]]:
        """Pieces that hold all places from `begin` to before `end`, maybe others too; and how many
        places come before them."""
        return 0, self

    def read_into(self, values: torch.Tensor, entries: Entries) -> None:
        """Fill values, float32 `[n]`, with the entries at the places, 0 where there is none."""
        begin = 0
        for places in self:
            values[begin : begin + places.numel()] = entries.at_or_zero(places)
            begin += places.numel()

    def added(self, values: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """base + values at the places, in the base's dtype: `[n]`. base: `[n]`, of a kind that
        loops take."""
        from ders_core.compute.kernels import entries

        weight, kind, begin = fresh(base.shape, base.dtype), kernels.kind_of(base.dtype), 0
        entries.copy(kernels.bits(base), kind, kernels.bits(weight))
        for places in self:
            kept = values[begin : begin + places.numel()]
            begin += places.numel()
            both = kernels.bits(base), kind, kernels.bits(weight)
            entries.add(kept.numpy(), places.contiguous().numpy(), *both)
        return weight

    def added_in_pieces(self, values: torch.Tensor, base: torch.Tensor) -> Iterator[torch.Tensor]:
        """What `added` gives, in pieces as of `Codec.unpack_in_pieces`."""
        yield self.added(values, base)


class PlacesInPieces(Places):
    """As they lie in memory."""

    def __init__(self, pieces: Sequence[torch.Tensor], *, has_gaps: bool = False) -> None:
        self._pieces, self.has_gaps = pieces, has_gaps

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._pieces)


def placed(
    values: torch.Tensor, pieces: Iterable[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Values and their places, a piece at a time."""
    begin = 0
    for places in pieces:
        yield values[begin : begin + places.numel()], places
        begin += places.numel()


def kept_places(pieces: Places, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the values whose place is not −1, and these places: int64. device: theirs."""
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    places = torch.cat([nothing, *pieces])
    numbers = at_least(places, 0)
    return numbers, places[numbers]


def added(values: torch.Tensor, pieces: Places, base: torch.Tensor, count: int) -> torch.Tensor:
    """As `Places.added`, of any kind and on any device. count: how many places there are."""
    if values.numel() == count and kernels.takes_stored(base):
        return pieces.added(values, base)
    size, spare = base.numel(), int(pieces.has_gaps)  # for values that have no place
    weight = fresh((size + spare,), base.dtype, base.device)
    torch.add(base, 0.0, out=weight[:size])  # as every sum with a dropped entry: −0 becomes 0
    for kept, places in placed(values, pieces):
        total = kept + base.index_select(0, places.clamp_min(0) if spare else places).float()
        there = torch.where(places < 0, size, places) if spare else places
        weight.index_copy_(0, there, total.to(base.dtype))
    return weight[:size]


def added_in_pieces(
    values: torch.Tensor, pieces: Places, base: torch.Tensor, count: int
) -> Iterator[torch.Tensor]:
    """What `added` gives, in pieces as of `Codec.unpack_in_pieces`."""
    if values.numel() == count and kernels.takes_stored(base):
        yield from pieces.added_in_pieces(values, base)
    else:
        yield added(values, pieces, base, count)


def scattered(
    values: torch.Tensor, pieces: Places, shape: tuple[int, int], rows: slice = slice(None)
) -> torch.Tensor:
    """Some rows, step 1, of a matrix `[out, in]` with `values` at the places, zero elsewhere."""
    first, last, _ = rows.indices(shape[0])
    begin, end = first * shape[1], last * shape[1]
    size, is_whole = end - begin, end - begin == math.prod(shape) and not pieces.has_gaps
    # what is not inside goes behind the end: a GPU would have to be asked how much that is
    flat = fresh((size if is_whole else size + 1,), torch.float32, values.device).zero_()
    before, some = pieces.between(begin, end)
    for kept, places in placed(values[before:], some):
        if not is_whole:
            is_inside = (places >= begin) & (places < end)
            places = torch.where(is_inside, places - begin, size)
        flat.index_copy_(0, places, kept)
    return flat[:size].view(last - first, shape[1])


def scaled_by_row(
    values: torch.Tensor,
    pieces: Iterable[torch.Tensor],
    factors: torch.Tensor,
    shape: tuple[int, int],
) -> torch.Tensor:
    """Each value times the factor of its row."""
    scaled, begin = fresh(values.shape, values.dtype, values.device), 0
    for places in pieces:
        piece = slice(begin, begin + places.numel())
        rows = places.clamp_min(0) // max(shape[1], 1)
        scaled[piece] = values[piece] * factors[rows]
        begin = piece.stop
    return scaled
