"""What a codec gives back in pieces: some of its rows, or the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ders_core.compute.buffers import fresh
from ders_core.later import torch


def keeping(
    pieces: Iterable[torch.Tensor], rows: slice, kept: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The pieces, as of `Codec.unpack_in_pieces`; `kept`, `[rows, in]`, gets some rows of them as
    they go by."""
    width = kept.shape[1]
    first, last, begin = rows.start * width, rows.stop * width, 0
    flat = kept.view(-1)
    for piece in pieces:
        end = begin + piece.numel()
        low, high = max(first, begin), min(last, end)
        if low < high:
            flat[low - first : high - first] = piece[low - begin : high - begin]
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
