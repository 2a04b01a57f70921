"""Products of two thin factors, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ders_core.codecs.synthesis import add
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import row_pieces
from ders_core.compute.sums import SUMMED_FIRST
from ders_core.compute.threads import each_piece
from ders_core.later import torch

TOGETHER = 1 << 20
"""Values of the product. Other pieces have other last bits, so this depends on nothing."""

SHARED = 2
"""So many pieces of a weight are made before the first of them is given: threads that help share
them out."""

HELD_BYTES = SHARED * 8 * TOGETHER
"""What is held of pieces of a product and of what they are added to, at most."""


@dataclass(frozen=True)
class ThinProduct:
    """left · right, of `[out, rank]` and `[rank, in]`, float32."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    def whole(self) -> torch.Tensor:
        """`[out, in]`."""
        product = fresh(self.shape, torch.float32, self.left.device)
        for rows in self._pieces():
            product[rows] = self.left[rows] @ self.right
        return product

    def of_rows(self, rows: slice) -> torch.Tensor:
        """The same rows of it, `[rows, in]`. rows: step 1."""
        start, stop, _ = rows.indices(self.shape[0])
        chosen = [self.right.new_empty(0, self.shape[1])]
        for piece in self._pieces():
            first, end = max(start, piece.start), min(stop, piece.stop)
            if first < end:
                product = self.left[piece] @ self.right
                chosen.append(product[first - piece.start : end - piece.start])
        return torch.cat(chosen)

    def added(self, base: torch.Tensor) -> torch.Tensor:
        """base + left · right, of the base's dtype, rounded once."""
        weight = fresh(base.shape, base.dtype, base.device)
        for rows in self._pieces():
            add(base[rows], self.left[rows] @ self.right, weight[rows])
        return weight

    def added_in_pieces(self, base: torch.Tensor) -> Iterator[torch.Tensor]:
        """The same, as of `Codec.unpack_in_pieces`. On a GPU it is one piece; on a CPU threads that
        help (see `each_piece`) share some of them out."""
        if base.device.type != "cpu":
            yield self.added(base).view(-1)
            return
        carried = base.new_empty(0)
        for weight in self._added_on_cpu(base):
            flat = torch.cat([carried, weight.view(-1)]) if len(carried) else weight.view(-1)
            summed = len(flat) // SUMMED_FIRST * SUMMED_FIRST
            if summed:
                yield flat[:summed]
            carried = flat[summed:]
        if len(carried):
            yield carried

    def _added_on_cpu(self, base: torch.Tensor) -> Iterator[torch.Tensor]:
        """Some rows of the weight at a time, all of them in order."""
        made = dict[int, torch.Tensor]()

        def make(rows: slice) -> None:
            weight = fresh((rows.stop - rows.start, self.shape[1]), base.dtype, base.device)
            add(base[rows], self.left[rows] @ self.right, weight)
            made[rows.start] = weight

        left = self._pieces()
        while some := list(islice(left, SHARED)):
            each_piece(make, some, 4 * TOGETHER)
            for rows in some:
                yield made.pop(rows.start)

    def _pieces(self) -> Iterator[slice]:
        return row_pieces(self.shape, TOGETHER)
