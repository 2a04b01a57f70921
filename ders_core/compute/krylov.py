"""The strongest directions of a large matrix, by products with blocks of vectors.

A block of random vectors and its images under AᵀA span a Krylov space; the singular values of A
there approach its largest ones from below (Musco and Musco, arXiv 1504.05477).
"""

from __future__ import annotations

from typing import Protocol

from ders_core.compute.pieces import chunk_values, pieces, row_pieces
from ders_core.later import torch

PASSES, ORTHOGONAL = 6, 1e-5
"""A block is orthogonal to the basis when no cosine is above the second; float32 leaves about 1e-7,
and up to 5e-6 in a pass that still has much to remove. Only a matrix of zeros needs four passes."""


ROWS = 128
"""Rows of a matrix that a processor multiplies with few columns at once: they stay in its cache."""


class Operator(Protocol):
    """A matrix A `[m, n]` by its products with blocks of vectors in float32."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def device(self) -> torch.device: ...

    def times(self, block: torch.Tensor) -> torch.Tensor:
        """A · block, `[n, k]` to `[m, k]`; in float32 or in a shorter dtype."""

    def back(self, block: torch.Tensor) -> torch.Tensor:
        """Aᵀ · block, `[m, k]` to `[n, k]`, alike."""


class Dense:
    """A matrix in memory, in float32 or in a shorter dtype that is quicker to multiply."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self._matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        return self._matrix.shape[0], self._matrix.shape[1]

    @property
    def device(self) -> torch.device:
        return self._matrix.device

    def times(self, block: torch.Tensor) -> torch.Tensor:
        block = block.to(self._matrix.dtype)
        if self.device.type != "cpu":
            return self._matrix @ block
        image = block.new_empty(self.shape[0], block.shape[1])
        for rows in pieces(self.shape[0], ROWS):
            torch.mm(self._matrix[rows], block, out=image[rows])
        return image

    def back(self, block: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = (block.to(self._matrix.dtype).mT @ self._matrix).mT
        return product


class Krylov:
    """An orthonormal basis of the Krylov space of AᵀA, `width` vectors longer after each step.

    Of a matrix with fewer rows than columns, that of AAᵀ. seed: of the start vectors.
    """

    def __init__(self, operator: Operator, width: int, seed: int) -> None:
        self._operator, self._width = operator, width
        self._is_wide = operator.shape[0] < operator.shape[1]
        size, device = min(operator.shape), operator.device
        start = torch.randn(size, width, generator=torch.Generator().manual_seed(seed)).to(device)
        self._next = torch.linalg.qr(start)[0]
        self._basis = torch.empty(size, 0, device=device)
        self._images: list[torch.Tensor] = []
        self._gram = torch.empty(0, 0, dtype=torch.float64)

    def grow(self) -> None:
        """Add a block to the basis."""
        there, back = self._operator.times, self._operator.back
        if self._is_wide:
            there, back = back, there
        if self._images:
            # QR parts the weak directions of the image from the strong ones, whose rounding would
            # drown them in the product. Row by row again, as the product is quick with.
            left = torch.linalg.qr(self._images[-1].float())[0].contiguous()
            self._next = self._orthogonal(back(left).float())
        self._basis = torch.cat((self._basis, self._next), 1)
        self._images.append(there(self._next))
        above, corner = self._latest_products().split([len(self._gram), self._width])
        self._gram = torch.cat(
            (torch.cat((self._gram, above), 1), torch.cat((above.mT, corner), 1))
        )

    def _latest_products(self) -> torch.Tensor:
        """Those of all images with the latest one, `[images · width, width]` float64 on the CPU; of
        a few rows at a time, which stay in the cache in float64."""
        latest = self._images[-1]
        products = latest.new_zeros(
            len(self._images), self._width, self._width, dtype=torch.float64
        )
        for rows in row_pieces(latest.shape, chunk_values(latest.device)):
            exact = latest[rows].double()
            for product, image in zip(products, self._images, strict=True):
                product.addmm_(image[rows].double().mT, exact)
        return products.flatten(0, 1).cpu()

    def _orthogonal(self, block: torch.Tensor) -> torch.Tensor:
        """Orthonormal, and to the basis too.

        Twice is enough for what is new in the block (Parlett 1998, §6.9). Where a block has nothing
        new, QR makes columns up, and these may be in the space: then once more, or more.
        """
        for turn in range(PASSES):
            block = block - self._basis @ (self._basis.mT @ block)
            block = torch.linalg.qr(block)[0]
            if turn and float((self._basis.mT @ block).abs().max()) < ORTHOGONAL:
                break
        return block

    def values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(singular values of A in the space, descending; the share of the start block in the
        vector of each), float64 on the CPU."""
        squares, vectors = self._eigen()
        weights = vectors[: self._width].square().sum(0) / self._width
        return squares.sqrt(), weights

    def triples(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The `count` largest singular triples in the space, float32: `[m, count]`, `[count]`,
        `[count, n]`; a left vector of no length where the value is zero."""
        squares, vectors = self._eigen()
        sigma, chosen = squares[:count].sqrt(), vectors[:, :count]
        parts = chosen.split(self._width)
        device = self._basis.device
        images = torch.zeros(len(self._images[0]), count, device=device)
        for image, part in zip(self._images, parts, strict=True):
            images += image.float() @ part.float().to(device)
        lengths = torch.where(sigma > 0, sigma, 1.0).float().to(device)
        images /= lengths
        inner, values = self._basis @ chosen.float().to(device), sigma.float().to(device)
        return (inner, values, images.mT) if self._is_wide else (images, values, inner.mT)

    def _eigen(self) -> tuple[torch.Tensor, torch.Tensor]:
        squares, vectors = torch.linalg.eigh(self._gram)
        return squares.clamp_min(0).flip(0), vectors.flip(1)
