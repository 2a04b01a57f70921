"""Columns that are rounded in turn, each error left to those after it: what every such rounding
shares.

A block of columns is rounded by itself. A product then brings its errors to the columns behind it
in the same panel, and one product those of the whole panel to all behind that: few values are
touched often, and most of them seldom (the lazy updates of GPTQ, arXiv 2210.17323, in two steps).
"""

from __future__ import annotations

from collections.abc import Callable

from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import pieces
from ders_core.later import torch

PANEL, BLOCK = 512, 64
"""Columns of a panel and of a block."""

ROWS = 512
"""Rows that are rounded at a time on a CPU: products with so many are as quick as with all, and
they stay in cache."""

GATHERED = 256
"""Rows of a matrix that are put in order at a time."""


def round_in_turn(
    rest: torch.Tensor, factor: torch.Tensor, rounded: Callable[[slice], torch.Tensor]
) -> None:
    """Round all columns of rest `[rows, in]` float32, which are in their order of turn and are
    overwritten. factor: as of `inverse_factor`, in that order, float32 `[in, in]`. rounded: rounds
    a block of columns of rest; returns what each leaves to those after it, `[rows, n]`."""
    for panel in pieces(rest.shape[1], PANEL):
        errors = list[torch.Tensor]()
        for begin in range(panel.start, panel.stop, BLOCK):
            block = slice(begin, min(begin + BLOCK, panel.stop))
            errors.append(rounded(block))
            behind = slice(block.stop, panel.stop)
            rest[:, behind].addmm_(errors[-1], factor[block, behind], alpha=-1)
        rest[:, panel.stop :].addmm_(torch.cat(errors, 1), factor[panel, panel.stop :], alpha=-1)


def columns_in_order(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """A copy of `[rows, in]` float32, to be rounded in turn."""
    copy = fresh(rows.shape, torch.float32, rows.device)
    return torch.index_select(rows, 1, order, out=copy)


def in_order(matrix: torch.Tensor, order: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows and columns of `[n, n]` in another order: a copy in this dtype, and nothing else of its
    size."""
    copy = fresh(matrix.shape, dtype, matrix.device)
    for rows in pieces(len(matrix), GATHERED):
        copy[rows] = matrix[order[rows]][:, order]
    return copy
