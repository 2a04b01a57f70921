"""What a codec gives back in pieces: some of its rows, or the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from ders_core.compute.buffers import fresh
from ders_core.later import torch


def keeping(
    pieces: Iterable[torch.Tensor], rows: Sequence[slice], kept: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The pieces, as of `Codec.unpack_in_pieces`; `kept`, `[n, in]`, gets some rows of them as they
    go by, one slice after another. rows: ascending, apart from each other."""
    width, begin, flat = kept.shape[1], 0, kept.view(-1)
    places = [(part.start * width, part.stop * width) for part in rows]
    filled = [0, *accumulate(last - first for first, last in places)]
    unfinished = 0
    for piece in pieces:
        end = begin + piece.numel()
        for number in range(unfinished, len(places)):
            first, last = places[number]
            low, high = max(first, begin), min(last, end)
            if low < high:
                shift = filled[number] - first
                flat[low + shift : high + shift] = piece[low - begin : high - begin]
            if last > end:
                break
            unfinished = number + 1
        begin = end
        yield piece


def whole(pieces: Iterable[torch.Tensor], base: torch.Tensor) -> torch.Tensor:
    """Ŵ `[out, in]`, of the base's shape, dtype and device; it may be the only piece."""
    weight, begin = None, 0
    for piece in pieces:
        if piece.numel() == base.numel():
            return piece.view(base.shape)
        if weight is None:
            weight = fresh(base.shape, base.dtype, base.device)
        weight.view(-1)[begin : begin + piece.numel()] = piece
        begin += piece.numel()
    assert weight is not None
    return weight
