"""The strongest directions of a large matrix, by products with blocks of vectors.

A block of random vectors and its images under AᵀA span a Krylov space; the singular values of A
there approach its largest ones from below (Musco and Musco, arXiv 1504.05477).
"""

from __future__ import annotations

from typing import Protocol

from ders_core.compute.eigen import Eigen
from ders_core.compute.orthonormal import orthonormal, orthonormal_to
from ders_core.compute.pieces import chunk_values, pieces, row_pieces
from ders_core.compute.sent import sent
from ders_core.compute.threads import each_piece
from ders_core.later import torch

ROWS, COLUMNS = 128, 4096
"""Of a tile of a matrix, which a processor multiplies with few columns at once: most of it stays in
its cache."""

TILE_BYTES = 4 * ROWS * COLUMNS

BACK = 8
"""Into about so many pieces products with the transpose are cut. Other pieces have other last bits,
so this depends on nothing."""


Triples = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]
"""The leading singular triples of a matrix: `[m, r]`, `[r]`, `[r, n]`, float32."""


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
    """A matrix in memory, in float32 or in a shorter dtype that is quicker to multiply. On a CPU
    threads that help (see `each_piece`) share out tiles of one in float32."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self._matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        return self._matrix.shape[0], self._matrix.shape[1]

    @property
    def device(self) -> torch.device:
        return self._matrix.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return self._matrix.dtype

    def tile(self, rows: slice, columns: slice) -> torch.Tensor:
        """A part of it, in its dtype; not to be changed."""
        return self._matrix[rows, columns]

    def times(self, block: torch.Tensor) -> torch.Tensor:
        block = block.to(self.dtype)
        if self.device.type != "cpu":
            return self._matrix @ block
        height, width = self.shape
        image = block.new_empty(height, block.shape[1])
        # sums over tiles would be rounded to a shorter dtype
        step = COLUMNS if self.dtype == torch.float32 else width

        def multiply(rows: slice) -> None:
            first, *rest = list(pieces(width, max(step, 1))) or [slice(0, 0)]
            torch.mm(self.tile(rows, first), block[first], out=image[rows])
            for columns in rest:
                image[rows].addmm_(self.tile(rows, columns), block[columns])

        each_piece(multiply, pieces(height, ROWS))
        return image

    def back(self, block: torch.Tensor) -> torch.Tensor:
        block = block.to(self.dtype)
        if self.device.type != "cpu" or self.dtype != torch.float32:
            product: torch.Tensor = (block.mT @ self._matrix).mT
            return product
        (height, width), count = self.shape, block.shape[1]
        across = list(pieces(width, COLUMNS))
        slabs = max(BACK // max(len(across), 1), 1)
        down = list(pieces(height, max(-(-height // slabs), ROWS))) or [slice(0, 0)]
        sums = block.new_zeros(len(down), count, width)

        def multiply(part: tuple[int, slice]) -> None:
            number, columns = part
            rows, total = down[number], sums[number, :, columns]
            for some in pieces(rows.stop - rows.start, ROWS):
                here = slice(rows.start + some.start, rows.start + some.stop)
                total.addmm_(block[here].mT, self.tile(here, columns))

        each_piece(multiply, [(number, part) for number in range(len(down)) for part in across])
        if len(sums) == 1:
            return sums[0].mT
        total = sums[0] + sums[1]  # a copy: images are kept
        for other in sums[2:]:
            total += other
        return total.mT


class Krylov:
    """An orthonormal basis of the Krylov space of AᵀA, `width` vectors longer after each step.

    Of a matrix with fewer rows than columns, that of AAᵀ. seed: of the start vectors. A GPU is
    waited for by nothing here; what decomposes `gram` does.
    """

    def __init__(self, operator: Operator, width: int, seed: int) -> None:
        self._operator, self._width = operator, width
        self._is_wide = operator.shape[0] < operator.shape[1]
        size, device = min(operator.shape), operator.device
        start = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
        self._next = orthonormal(sent(start, device))
        self._basis = torch.empty(size, 0, device=device)
        self._images: list[torch.Tensor] = []
        self._gram = torch.empty(0, 0, dtype=torch.float64, device=device)

    def grow(self) -> None:
        """Add a block to the basis."""
        there, back = self._operator.times, self._operator.back
        if self._is_wide:
            there, back = back, there
        if self._images:
            # QR parts the weak directions of the image from the strong ones, whose rounding would
            # drown them in the product. Row by row again, as the product is quick with.
            left = orthonormal(self._images[-1].float()).contiguous()
            self._next = orthonormal_to(self._basis, back(left).float())
        self._basis = torch.cat((self._basis, self._next), 1)
        self._images.append(there(self._next))
        above, corner = self._latest_products().split([len(self._gram), self._width])
        self._gram = torch.cat(
            (torch.cat((self._gram, above), 1), torch.cat((above.mT, corner), 1))
        )

    def _latest_products(self) -> torch.Tensor:
        """Those of all images with the latest one, `[images · width, width]` float64. The images
        are in float64 a few rows at a time, which stay in the cache; the latest one is as a whole.
        On a CPU threads that help (see `each_piece`) share out the images."""
        latest = self._images[-1]
        exact, values = latest.double(), chunk_values(latest.device)
        products = exact.new_zeros(len(self._images), self._width, self._width)

        def multiply(number: int) -> None:
            image, product = self._images[number], products[number]
            for rows in row_pieces(latest.shape, values):
                product.addmm_(image[rows].double().mT, exact[rows])

        each_piece(multiply, range(len(self._images)))
        return products.flatten(0, 1)

    def end(self) -> None:
        """What it multiplies with is free: it does not grow any more."""
        del self._operator

    @property
    def gram(self) -> torch.Tensor:
        """The products of the images of the basis, float64 `[k, k]`: their eigenvalues are squares
        of singular values of A in the space."""
        return self._gram

    def values(self, eigen: Eigen) -> tuple[torch.Tensor, torch.Tensor]:
        """(singular values of A in the space, descending; the share of the start block in the
        vector of each), float64 where `gram` was decomposed. eigen: of `gram`."""
        squares, vectors = eigen
        weights = vectors[: self._width].square().sum(0) / self._width
        return squares.sqrt(), weights

    def triples(self, count: int, eigen: Eigen) -> Triples:
        """The `count` largest ones in the space; a left vector of no length where the value is
        zero. eigen: of `gram`, on the device."""
        squares, vectors = eigen
        sigma, chosen = squares[:count].sqrt(), vectors[:, :count]
        parts = chosen.split(self._width)
        device = self._basis.device
        images = torch.zeros(len(self._images[0]), count, device=device)
        for image, part in zip(self._images, parts, strict=True):
            images += image.float() @ part.float().to(device)
        inner, values = self._basis @ chosen.float().to(device), sigma.float().to(device)
        images /= torch.where(values > 0, values, 1.0)
        return (inner, values, images.mT) if self._is_wide else (images, values, inner.mT)
