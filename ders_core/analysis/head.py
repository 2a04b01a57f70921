"""The strongest singular values of a large matrix, by block bidiagonalisation.

Random vectors are multiplied with Δ and with Δᵀ in turn, each time made orthonormal to all that
came before on the same side (Golub and Kahan 1965; Golub, Luk and Overton 1981). What is projected
on these vectors is a small matrix whose singular values approach the largest ones of Δ from below,
and are looked at after each product: a Krylov space of ΔᵀΔ, which `compute/krylov.py` builds, has
new ones after every second product only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ders_core.compute.orthonormal import ORTHOGONAL, PASSES
from ders_core.compute.pieces import pieces, row_pieces
from ders_core.compute.threads import IdleThreads
from ders_core.later import np, torch

HEAD = 16
"""How many of the largest singular values `head` computes."""

WIDTH = 24
"""Vectors in a block. A flat spectrum takes as many products with 24 as with 32; with 16, values
that lie close together take many more."""

PRODUCTS = 20
"""At most so many products with a block."""

GROWTH, MISSING, SAFETY, ROUNDING = 0.0015, 0.005, 10, 1e-6
"""The head is done when no value has grown by more than the share GROWTH in a product, or when
SAFETY times what it still misses if its growth goes on as a geometric series is no more than the
share MISSING, or when it has grown by no more than ROUNDING of the largest, which products in
float32 make of nothing."""

PIECE_VALUES, PIECE_COLUMNS = 1 << 21, 512
"""Of a matrix, that a processor multiplies with its rows, or with its columns, at a time. Of fewer
rows, it prepares the block as often as it multiplies with it; more do not stay in its cache."""


def head(delta: torch.Tensor, idle: IdleThreads | None = None) -> np.ndarray:
    """The HEAD largest singular values of `[m, n]` in `product_dtype`, descending, float64.

    Neither side is shorter than (PRODUCTS / 2 + 1) · WIDTH. idle: threads that help to multiply;
    values do not depend on them. Errors are below 0.1 % where values stand out from the others,
    about 1 % where the spectrum is flat.
    """
    sides = [_Side(min(delta.shape), delta.device), _Side(max(delta.shape), delta.device)]
    latest = sides[0].start(seed=0)
    is_wide = delta.shape[0] < delta.shape[1]
    sigma = grown = np.zeros(HEAD)
    for product in range(1, PRODUCTS + 1):
        side = sides[product % 2]
        multiply = with_rows if is_wide != bool(product % 2) else with_columns
        latest = side.add(multiply(delta, latest.to(delta.dtype), idle).float())
        before, sigma = sigma, side.values()
        grown_before, grown = grown, sigma - before
        if product > 2 and _is_settled(sigma, grown, grown_before):
            break
    return sigma


def _is_settled(sigma: np.ndarray, grown: np.ndarray, grown_before: np.ndarray) -> bool:
    slower = grown_before - grown
    missing = np.divide(grown**2, slower, out=np.full(HEAD, np.inf), where=slower > 0)
    has_grown = grown > np.maximum(GROWTH * sigma, ROUNDING * sigma[0])
    return not (has_grown & (SAFETY * missing > MISSING * sigma)).any()


def with_rows(
    matrix: torch.Tensor, block: torch.Tensor, idle: IdleThreads | None = None
) -> torch.Tensor:
    """block · matrixᵀ, of `[m, n]` and `[k, n]` in one dtype: `[k, m]`. idle: as of `head`."""
    if matrix.device.type != "cpu":
        return block @ matrix.mT
    image = block.new_empty(len(block), len(matrix))

    def multiply(rows: slice) -> None:
        torch.mm(block, matrix[rows].mT, out=image[:, rows])

    _each(multiply, row_pieces(matrix.shape, PIECE_VALUES), idle)
    return image


def with_columns(
    matrix: torch.Tensor, block: torch.Tensor, idle: IdleThreads | None = None
) -> torch.Tensor:
    """block · matrix, of `[m, n]` and `[k, m]` in one dtype: `[k, n]`. idle: as of `head`."""
    if matrix.device.type != "cpu":
        return block @ matrix
    image = block.new_empty(len(block), matrix.shape[1])

    def multiply(columns: slice) -> None:
        torch.mm(block, matrix[:, columns], out=image[:, columns])

    _each(multiply, pieces(matrix.shape[1], PIECE_COLUMNS), idle)
    return image


def _each(work: Callable[[slice], None], parts: Iterable[slice], idle: IdleThreads | None) -> None:
    if idle is not None:
        idle.help(work, parts)
        return
    for part in parts:
        work(part)


class _Side:
    """Orthonormal vectors of one side of the matrix, in rows, and what images are made of them."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._memory = torch.empty((PRODUCTS // 2 + 1) * WIDTH, size, device=device)
        self._count = 0
        self._shares: list[torch.Tensor] = []

    def start(self, seed: int) -> torch.Tensor:
        """The first block `[WIDTH, size]`, at random."""
        generator = torch.Generator().manual_seed(seed)
        size, device = self._memory.shape[1], self._memory.device
        return self._keep(
            torch.linalg.qr(torch.randn(size, WIDTH, generator=generator).to(device))[0].mT
        )

    def _keep(self, block: torch.Tensor) -> torch.Tensor:
        place = slice(self._count, self._count + WIDTH)
        self._count += WIDTH
        self._memory[place] = block
        return self._memory[place]

    def add(self, image: torch.Tensor) -> torch.Tensor:
        """Take up what is new in the image `[WIDTH, size]` of a block: returns an orthonormal block
        that holds it.

        Vectors that weak directions make, or QR where there is nothing new, may not be orthogonal
        to the earlier ones at once: then once more, or more.
        """
        basis = self._memory[: self._count]
        triangle = torch.eye(WIDTH, device=image.device)
        shares, share = image.new_zeros(WIDTH, self._count), image @ basis.mT
        for _ in range(PASSES):
            shares += triangle @ share
            orthonormal, corner = torch.linalg.qr((image - share @ basis).mT)
            image, triangle = orthonormal.mT, triangle @ corner.mT
            share = image @ basis.mT
            if not self._count or float(share.abs().max()) < ORTHOGONAL:
                break
        self._shares.append(torch.cat((shares, triangle), 1).double().cpu())
        return self._keep(image)

    def values(self) -> np.ndarray:
        """The HEAD largest singular values `[HEAD]` of all images together, float64."""
        projected = torch.zeros(len(self._shares) * WIDTH, self._count, dtype=torch.float64)
        for number, shares in enumerate(self._shares):
            projected[number * WIDTH : (number + 1) * WIDTH, : shares.shape[1]] = shares
        values: np.ndarray = torch.linalg.svdvals(projected)[:HEAD].numpy()
        return values
