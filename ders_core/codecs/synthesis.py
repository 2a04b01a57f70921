"""W = W_base + Δ: deltas out of weights, and weights out of deltas."""

from __future__ import annotations

from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.later import torch


def difference(weight: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Δ = W − W_base `[out, in]` in float32; both in any float dtype."""
    delta = fresh(tuple(weight.shape), torch.float32, weight.device)
    if kernels.takes_stored(weight, base):
        from ders_core.compute.kernels import differences

        ours, common = (kernels.bits(tensor).reshape(-1) for tensor in (weight, base))
        kind = kernels.kind_of(weight.dtype)
        differences.subtract(ours, common, kind, delta.view(-1).numpy())
        return delta
    for rows in row_pieces(weight.shape, chunk_values(weight.device)):
        torch.sub(weight[rows].float(), base[rows].float(), out=delta[rows])
    return delta


def combine(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Synthesis (DeRS eq. 2): Ŵ = W_base + F(Δ), added in float32, in the base's dtype."""
    weight = fresh(tuple(base.shape), base.dtype, base.device)
    for rows in row_pieces(base.shape, chunk_values(base.device)):
        add(base[rows], delta[rows], weight[rows])
    return weight


def add(base: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> None:
    """base + delta, added in float32 and rounded once, into `weight`, of the base's dtype. delta:
    float32, of the same shape."""
    if not kernels.takes(base, delta, weight) or base.dtype not in (torch.bfloat16, torch.float32):
        weight.copy_(base.float() + delta)
        return
    from ders_core.compute.kernels import synthesis

    if base.dtype == torch.float32:
        arrays = (tensor.view(-1).numpy() for tensor in (base, delta, weight))
        synthesis.add_float32(*arrays)
    else:
        bits = (tensor.view(-1).view(torch.uint16).numpy() for tensor in (base, weight))
        start, total = bits
        synthesis.add_bfloat16(start, delta.view(-1).numpy(), total)
