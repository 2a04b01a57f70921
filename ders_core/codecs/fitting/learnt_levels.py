"""Levels that are learnt from a matrix, whose values are normalised by their blocks' scales.

Two passes of their own, before one can code: the first finds the best uniform scale of each block,
and between what all values lie that are normalised by these; the second sums them up in a
histogram. Values are normalised in each, and never written.
"""

from __future__ import annotations

from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.codes import CHUNK
from ders_core.codecs.fitting.deltas import Deltas
from ders_core.codecs.fitting.levels import uniform
from ders_core.codecs.fitting.lloyd import HISTOGRAM_BINS, Histogram, learnt
from ders_core.codecs.fitting.scales import best_scales, search_arguments, weights_of_blocks
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.later import np, torch


def learnt_of_blocks(
    deltas: Deltas, blocks: Blocks, bits: int, weights: torch.Tensor | None
) -> torch.Tensor:
    """2^bits levels with the least squared error for a matrix, as of `learnt`. weights: of errors
    in each column, float32 `[1, in]`; None for 1."""
    coarse = uniform(2**bits)
    heights = blocks.split_weights(weights, deltas.device)
    matrix = deltas.for_loops
    if matrix is None:
        normed = fresh(deltas.shape, torch.float32, deltas.device)
        for rows in row_pieces(deltas.shape, chunk_values(deltas.device, CHUNK)):
            split = blocks.split(deltas.of_rows(rows))
            scale = best_scales(split, heights, coarse).unsqueeze(-1)
            normed[rows] = blocks.join(split / torch.where(scale > 0, scale, 1.0))
        return learnt(normed, bits, None if weights is None else weights.expand_as(normed))
    from ders_core.compute.kernels import normed_values as loops

    split = torch.empty(1, blocks.count, blocks.size)
    of_blocks = weights_of_blocks(heights, split)
    assert of_blocks is not None
    scales = np.empty((deltas.shape[0], blocks.count), np.float32)
    search, of_scales = search_arguments(coarse), (blocks.size, of_blocks.float().numpy())
    low, high = loops.extremes(*matrix, *of_scales, search, scales)
    if not high > low:
        return torch.full((2**bits,), float(low))
    sums = np.zeros((HISTOGRAM_BINS, 2), np.float64)
    of_columns = np.empty(0, np.float32) if weights is None else weights.view(-1).numpy()
    fine = np.float32(HISTOGRAM_BINS / (float(high) - float(low)))
    loops.sum_up(*matrix, blocks.size, scales, of_columns, low, fine, sums)
    mass, total = torch.from_numpy(sums).T.contiguous()
    return Histogram(mass, total).levels(bits)
