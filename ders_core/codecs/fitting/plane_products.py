"""Products with codes that lie in bit planes, on a CPU: the planes are never decoded."""

from __future__ import annotations

from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.codes import Lines
from ders_core.codecs.fitting.levels import Levels
from ders_core.compute import kernels
from ders_core.later import np, torch

FEW_PLANES = 16
"""Tokens times bits, up to which products of planes are quicker than decoding once."""

ROWS, BYTE = 4, 8
"""What loops take at a time: rows, and entries of one of them."""


def takes_planes(
    codes: torch.Tensor,
    bits: int | None,
    levels: Levels,
    shape: tuple[int, int],
    blocks: Blocks,
    x: torch.Tensor,
) -> bool:
    """Whether `product_of_planes` can be had, and pays: levels are 1 apart, blocks are of whole
    bytes and fill rows, tokens are few, and no gradient is asked for."""
    is_tracked = x.requires_grad and torch.is_grad_enabled()
    if bits is None or not levels.uniform or is_tracked or len(x) * bits > FEW_PLANES:
        return False
    fills = blocks.size * blocks.count == shape[1] and blocks.size % BYTE == 0
    return fills and shape[0] % ROWS == 0 and min(shape) > 0 and kernels.takes(codes, x)


def product_of_planes(
    codes: torch.Tensor, bits: int, lines: Lines, levels: Levels, blocks: Blocks, x: torch.Tensor
) -> torch.Tensor:
    """x Δ̂ᵀ `[n, out]` in x's dtype. codes: as `pack` makes of `[out, in]`. x: `[n, in]`."""
    inputs = x.float()
    product = plane_product(codes, bits, lines.scale, inputs)
    starts = lines.scale * float(levels.table[0])  # of code 0, in each block
    if lines.offset is not None:
        starts = starts + lines.offset
    return product.add_(blocks.split(inputs).sum(-1) @ starts.T).to(x.dtype)


def plane_product(
    codes: torch.Tensor, bits: int, scales: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """Σ_j scale · code · x_j: float32 `[n, out]`. scales: float32 `[out, blocks]`. x: float32."""
    from ders_core.compute.kernels import plane_products

    product = np.empty((len(x), len(scales)), np.float32)
    arrays = (scales.contiguous().numpy(), x.detach().contiguous().numpy())
    plane_products.multiply(codes.numpy(), bits, *arrays, product)
    return torch.from_numpy(product)
