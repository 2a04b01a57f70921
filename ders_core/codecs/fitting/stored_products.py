"""Products with matrices of stored floats for a few inputs on a CPU, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs.routed import RoutedDeltas, Routes
from ders_core.compute import kernels
from ders_core.compute.row_pieces import by_row_pieces
from ders_core.later import np, torch

MOST_PAIRS = 8
"""Of one expert: of more, torch's products with its factors are quicker than loops."""


FEW_TOKENS = 16
"""Up to which products with a matrix in 16 bits are quicker than to convert it to float32."""


def takes_matrices(*matrices: torch.Tensor) -> bool:
    """Whether `add_products` can multiply these: contiguous bfloat16 or float32 on a CPU."""
    dtypes = {matrix.dtype for matrix in matrices}
    return dtypes <= {torch.bfloat16, torch.float32} and kernels.takes(*matrices)


def add_products(
    matrices: torch.Tensor, x: np.ndarray, y: np.ndarray, column: int, routes: Routes
) -> None:
    """As `RoutedDeltas.add`, with the matrices `[experts, out, in]` themselves."""
    from ders_core.compute.kernels import stored_products

    arrays = (kernels.bits(matrices), x, routes.inputs, routes.experts, y, column, routes.outputs)

    def work(first: int, last: int) -> None:
        stored_products.add(*arrays, first, last)

    _, out, width = matrices.shape
    by_row_pieces(work, out, out * width * len(routes.inputs))


@dataclass(frozen=True)
class StoredMatrix:
    """One matrix `[out, in]` of floats for all tokens, as it is stored."""

    weights: torch.Tensor

    @cached_property
    def _bits(self) -> np.ndarray:
        return kernels.bits(self.weights)

    @cached_property
    def _has_loops(self) -> bool:
        return self.weights.dtype is torch.bfloat16 and takes_matrices(self.weights)

    def add(self, x: np.ndarray, y: np.ndarray, column: int) -> None:
        """y[:, column:column + out] += x Wᵀ, in float32: x `[n, in]`, y `[n, ≥ column + out]`, both
        contiguous."""
        (out, width), tokens = self.weights.shape, len(x)
        if not self._has_loops or tokens > FEW_TOKENS:
            weights = self.weights.float()
            product = torch.nn.functional.linear(torch.from_numpy(x), weights)
            y[:, column : column + out] += product.numpy()
            return
        from ders_core.compute.kernels import stored_products

        bits = self._bits

        def work(first: int, last: int) -> None:
            stored_products.add_to_all(bits, x, y, column, first, last)

        by_row_pieces(work, out, out * width * tokens)


@dataclass(frozen=True)
class RoutedFactors(RoutedDeltas):
    """Δ̂ = L R. left: `[experts, out, rank]`, right: `[experts, rank, in]`."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def most_pairs(self) -> int:
        return MOST_PAIRS

    def add(self, x: np.ndarray, y: np.ndarray, column: int, routes: Routes) -> None:
        pairs = np.arange(len(routes.inputs))
        inner = np.zeros((len(pairs), self.right.shape[1]), np.float32)
        add_products(self.right, x, inner, 0, Routes(routes.inputs, routes.experts, pairs))
        add_products(self.left, inner, y, column, Routes(pairs, routes.experts, routes.outputs))
