"""Values of kept entries at their flat places in a matrix, a piece of them at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from ders_core.codecs.delta_entries import Entries
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import at_least
from ders_core.later import torch


class Places(ABC):
    """Flat places in a matrix, int64, a piece at a time, in the order of the stored values; −1
    where a value has no entry."""

    @abstractmethod
    def __iter__(self) -> Iterator[torch.Tensor]: ...

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


class PlacesInPieces(Places):
    """pieces: of an iterator, they are gone through once."""

    def __init__(self, pieces: Iterable[torch.Tensor]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._pieces)


def placed(
    values: torch.Tensor, pieces: Iterable[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Values and their places, a piece at a time, without those at the place −1."""
    begin = 0
    for places in pieces:
        kept = values[begin : begin + places.numel()]
        begin += places.numel()
        if places.numel() and int(places.min()) < 0:
            inside = at_least(places, 0)
            kept, places = kept.index_select(0, inside), places.index_select(0, inside)
        yield kept, places


def kept_places(
    values: torch.Tensor, pieces: Iterable[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the values whose place is not −1, and these places: int64."""
    numbers = torch.arange(values.numel(), device=values.device)
    pairs = [(numbers[:0], numbers[:0]), *placed(numbers, pieces)]
    kept, places = zip(*pairs, strict=True)
    return torch.cat(kept), torch.cat(places)


def scattered(
    values: torch.Tensor,
    pieces: Iterable[torch.Tensor],
    shape: tuple[int, int],
    rows: slice = slice(None),
) -> torch.Tensor:
    """Some rows, step 1, of a matrix `[out, in]` with `values` at the places, zero elsewhere."""
    first, last, _ = rows.indices(shape[0])
    begin, end = first * shape[1], last * shape[1]
    flat = fresh((end - begin,), torch.float32, values.device).zero_()
    for kept, places in placed(values, pieces):
        if len(flat) < math.prod(shape):
            inside = ((places >= begin) & (places < end)).nonzero().flatten()
            kept, places = kept[inside], places[inside] - begin
        flat.index_copy_(0, places, kept)
    return flat.view(last - first, shape[1])


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
