"""The strongest singular values of a large matrix, by block bidiagonalisation.

Random vectors are multiplied with Δ and with Δᵀ in turn, each time made orthonormal to all that
came before on the same side (Golub and Kahan 1965; Golub, Luk and Overton 1981). What is projected
on these vectors is a small matrix whose singular values approach the largest ones of Δ from below,
and are looked at after each product: a Krylov space of ΔᵀΔ, which `compute/krylov.py` builds, has
new ones after every second product only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ders_core.compute.brought import bring_together
from ders_core.compute.buffers import fresh
from ders_core.compute.orthonormal import ORTHOGONAL, PASSES, orthonormal, orthonormal_to
from ders_core.compute.pieces import pieces, row_pieces
from ders_core.compute.sent import sent
from ders_core.compute.threads import IdleThreads
from ders_core.compute.together import batches
from ders_core.later import np, torch

HEAD = 16
"""How many of the largest singular values of a delta `heads` computes."""

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


def heads(deltas: Iterable[torch.Tensor], idle: IdleThreads | None = None) -> list[np.ndarray]:
    """The HEAD largest singular values of each delta, descending, float64.

    deltas: `[m, n]` in `product_dtype`, of which neither side is shorter than
    (PRODUCTS / 2 + 1) · WIDTH. idle: threads that help to multiply; values do not depend on them. A
    GPU is waited for after a product with as many deltas as it holds. Errors are below 0.1 % where
    values stand out from the others, about 1 % where the spectrum is flat.
    """
    found = list[np.ndarray]()
    for some in batches(deltas, _held):
        searches = [_Search(delta) for delta in some]
        some.clear()
        while growing := [search for search in searches if not search.is_done]:
            shares = bring_together([search.multiply(idle) for search in growing])
            for search, share in zip(growing, shares, strict=True):
                search.look(share)
        found += [search.sigma for search in searches]
    return found


def _held(delta: torch.Tensor) -> int:
    """Bytes of a delta, and of the vectors on both sides."""
    vectors = (PRODUCTS // 2 + 1) * WIDTH
    return delta.nbytes + vectors * sum(delta.shape) * torch.float32.itemsize


class _Search:
    """The largest singular values of delta, with one product after another."""

    def __init__(self, delta: torch.Tensor) -> None:
        self._delta, self._products = delta, 0
        self._is_wide = delta.shape[0] < delta.shape[1]
        self._sides = [_Side(size(delta.shape), delta.device) for size in (min, max)]
        self._latest = self._sides[0].start(seed=0)
        self._grown = np.zeros(HEAD)
        self.sigma = np.zeros(HEAD)
        self.is_done = False

    def multiply(self, idle: IdleThreads | None) -> torch.Tensor:
        """Multiply with the latest vectors; returns what `look` is to be given, on the device."""
        self._products += 1
        is_odd = bool(self._products % 2)
        multiply = with_rows if self._is_wide != is_odd else with_columns
        image = multiply(self._delta, self._latest.to(self._delta.dtype), idle).float()
        self._latest, shares = self._sides[is_odd].add(image)
        return shares

    def look(self, shares: torch.Tensor) -> None:
        """Tell the values, and whether they are done. shares: on the CPU."""
        sigma = self._sides[self._products % 2].values(shares)
        grown = sigma - self.sigma
        is_settled = self._products > 2 and _is_settled(sigma, grown, self._grown)
        self.sigma, self._grown = sigma, grown
        self.is_done = is_settled or self._products == PRODUCTS


def _is_settled(sigma: np.ndarray, grown: np.ndarray, grown_before: np.ndarray) -> bool:
    slower = grown_before - grown
    missing = np.divide(grown**2, slower, out=np.full(HEAD, np.inf), where=slower > 0)
    has_grown = grown > np.maximum(GROWTH * sigma, ROUNDING * sigma[0])
    return not (has_grown & (SAFETY * missing > MISSING * sigma)).any()


def with_rows(
    matrix: torch.Tensor, block: torch.Tensor, idle: IdleThreads | None = None
) -> torch.Tensor:
    """block · matrixᵀ, of `[m, n]` and `[k, n]` in one dtype: `[k, m]`. idle: as of `heads`."""
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
    """block · matrix, of `[m, n]` and `[k, m]` in one dtype: `[k, n]`. idle: as of `heads`."""
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
        self._memory = fresh(((PRODUCTS // 2 + 1) * WIDTH, size), torch.float32, device)
        self._count = 0
        self._shares: list[torch.Tensor] = []

    def start(self, seed: int) -> torch.Tensor:
        """The first block `[WIDTH, size]`, at random."""
        generator = torch.Generator().manual_seed(seed)
        size, device = self._memory.shape[1], self._memory.device
        start = torch.randn(size, WIDTH, generator=generator)
        return self._keep(orthonormal(sent(start, device)).mT)

    def _keep(self, block: torch.Tensor) -> torch.Tensor:
        place = slice(self._count, self._count + WIDTH)
        self._count += WIDTH
        self._memory[place] = block
        return self._memory[place]

    def add(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take up what is new in the image `[WIDTH, size]` of a block: returns an orthonormal block
        that holds it, and what the image is made of, float64 `[WIDTH, vectors]` on its device."""
        part = self._looked_at if image.device.type == "cpu" else self._blindly
        block, shares = part(image, self._memory[: self._count])
        return self._keep(block), shares

    def _looked_at(
        self, image: torch.Tensor, basis: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors that weak directions make, or QR where there is nothing new, may not be
        orthogonal to the earlier ones at once: then once more, or more."""
        triangle = torch.eye(WIDTH)
        shares, share = image.new_zeros(WIDTH, self._count), image @ basis.mT
        for _ in range(PASSES):
            shares += triangle @ share
            columns, corner = torch.linalg.qr((image - share @ basis).mT)
            image, triangle = columns.mT, triangle @ corner.mT
            share = image @ basis.mT
            if not self._count or float(share.abs().max()) < ORTHOGONAL:
                break
        return image, torch.cat((shares, triangle), 1).double()

    @staticmethod
    def _blindly(image: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Without a look at what is orthogonal, which would wait. Vectors of nothing are zeros."""
        block = orthonormal_to(basis.mT, image.mT).mT
        return block, image.double() @ torch.cat((basis, block)).double().mT

    def values(self, latest: torch.Tensor) -> np.ndarray:
        """The HEAD largest singular values `[HEAD]` of all images together, float64. latest: what
        the latest one is made of, on the CPU."""
        self._shares.append(latest)
        projected = torch.zeros(len(self._shares) * WIDTH, self._count, dtype=torch.float64)
        for number, shares in enumerate(self._shares):
            projected[number * WIDTH : (number + 1) * WIDTH, : shares.shape[1]] = shares
        values: np.ndarray = torch.linalg.svdvals(projected)[:HEAD].numpy()
        return values
