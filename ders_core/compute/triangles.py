"""Triangular factors of a positive definite matrix, in the memory of the matrix, and products with
them.

A matrix of 14336 columns takes 0.8 GB in float32, so no second one is made. A block of columns at a
time is computed in float64, and rounded to the dtype of the matrix where it is stored.
"""

from __future__ import annotations

from functools import partial

from ders_core.compute.pieces import pieces
from ders_core.compute.threads import each_piece
from ders_core.later import torch

COLUMNS = 256
"""Of a block: many for products to be quick, few for the memory of a block in float64."""


def factorize(matrix: torch.Tensor) -> torch.Tensor:
    """A symmetric positive definite H `[n, n]`, float32 or float64, becomes the upper triangular R
    with R·Rᵀ = H. Only the upper triangle is read. Returns whether it was positive definite, bool
    `[]` on its device, which nothing waits for; if not, what it becomes means nothing."""
    size, is_definite = len(matrix), torch.ones((), dtype=torch.bool, device=matrix.device)
    for here in reversed(list(pieces(size, COLUMNS))):
        known = matrix[here, here.stop :].double()
        corner = matrix[here, here].double() - known @ known.mT
        corner, failed = torch.linalg.cholesky_ex(corner.flip(0, 1), upper=False)
        corner, is_definite = corner.flip(0, 1), is_definite & (failed == 0)
        solve = partial(_solve, matrix, here, known, corner.mT)
        each_piece(solve, pieces(here.start, COLUMNS), 8 * COLUMNS * size)
        matrix[here, here] = corner
        matrix[here, : here.start] = 0
    return is_definite


def _solve(
    matrix: torch.Tensor, here: slice, known: torch.Tensor, lower: torch.Tensor, above: slice
) -> None:
    """R of some rows above the block of columns `here`. known: R to the right of that block. lower:
    the block's corner, transposed."""
    rest = matrix[above, here].double() - matrix[above, here.stop :].double() @ known.mT
    matrix[above, here] = torch.linalg.solve_triangular(lower, rest, upper=False, left=False)


def invert(upper: torch.Tensor) -> None:
    """An upper triangular matrix `[n, n]`, float32 or float64, becomes its inverse."""
    size = len(upper)
    for here in pieces(size, COLUMNS):
        exact = upper[here, here].double()
        unit = torch.eye(len(exact), dtype=exact.dtype, device=exact.device)
        corner = torch.linalg.solve_triangular(exact, unit, upper=True)
        column = upper[: here.start, here].double() @ -corner
        # of columns before, the inverse is there
        invert_rows = partial(_invert, upper, here, column)
        each_piece(invert_rows, pieces(here.start, COLUMNS), 8 * COLUMNS * size)
        upper[here, here] = corner


def _invert(upper: torch.Tensor, here: slice, column: torch.Tensor, above: slice) -> None:
    """The inverse in some rows above the block of columns `here`. column: that of the matrix, times
    the inverse of its corner, negative."""
    known = upper[above, above.start : here.start].double()
    upper[above, here] = known @ column[above.start :]


def inverse_factor(matrix: torch.Tensor) -> torch.Tensor:
    """A positive definite H `[n, n]` becomes the upper triangular U with UᵀU = H⁻¹, which is R⁻¹ of
    `factorize`; dtypes, and what is returned, as there. Of an error in column j that those after it
    make up for as well as they can, 1/U_jj² is left."""
    is_definite = factorize(matrix)
    invert(matrix)
    return is_definite


def times_lower(lower: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """L · block, `[n, k]`. lower: L `[n, n]`; what is above its diagonal is hardly multiplied."""
    image = block.new_empty(block.shape)

    def multiply(rows: slice) -> None:
        torch.mm(lower[rows, : rows.stop], block[: rows.stop], out=image[rows])

    each_piece(multiply, pieces(len(lower), COLUMNS))
    return image


def back_lower(lower: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Lᵀ · block, as `times_lower`."""
    image = block.new_empty(block.shape)

    def multiply(rows: slice) -> None:
        torch.mm(lower[rows.start :, rows].mT, block[rows.start :], out=image[rows])

    each_piece(multiply, pieces(len(lower), COLUMNS))
    return image
