"""How often codes occur in each class, and what the values of each code add up to."""

from __future__ import annotations

from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.compute import kernels
from ders_core.compute.pieces import pieces
from ders_core.later import np, torch

CHUNK = 1 << 19
"""Values at a time, without compiled loops."""


def arrange_and_count(
    codes: np.ndarray,
    part: Arrangement,
    begins: np.ndarray,
    arranged: np.ndarray,
    least: int,
    counts: np.ndarray,
) -> None:
    """Put codes, uint16 `[rows · in]`, of some rows into `arranged`, of the whole matrix, less by
    `least`: uint8 or uint16, which holds them then; and add how often they occur to counts, int64
    `[classes, codes]`. begins: int64 `[classes]`, where those of these rows begin there."""
    matrix = codes.reshape(part.shape)
    if kernels.takes():
        from ders_core.compute.kernels import arranged as loops

        order = part.order, part.edges, part.kinds, begins
        loops.arrange_and_count(matrix, *order, arranged, np.uint16(least), counts)
        return
    ordered = part.arranged(matrix)
    for number, (begin, of_class) in enumerate(zip(begins.tolist(), part.classes, strict=True)):
        some = ordered[of_class]
        arranged[begin : begin + some.size] = some - np.uint16(least)
        for piece in pieces(some.size, CHUNK):
            counts[number] += np.bincount(some[piece], minlength=counts.shape[1])


def add_up(values: torch.Tensor, codes: np.ndarray, unit: float, totals: np.ndarray) -> None:
    """Add values / unit to totals, float64 `[codes]`, one after another. values: float32 `[n]`."""
    if kernels.takes(values):
        from ders_core.compute.kernels import multiples

        multiples.add_up(values.numpy(), codes, unit, totals)
        return
    for piece in pieces(values.numel(), CHUNK):
        np.add.at(totals, codes[piece], values[piece].double().div_(unit).numpy())
