"""Averages of the experts of a group, element by element: what most bases are made of.

The experts' weights are read once, a few rows of all experts at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ders_core.checkpoint import ExpertGroup
from ders_core.checkpoint.streaming import each_slab
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import CHUNK, row_pieces
from ders_core.compute.threads import available_threads
from ders_core.decompose.decomposition import Decomposition, decompose
from ders_core.later import np, torch


def mean_base(
    group: ExpertGroup,
    members: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """The experts' mean `[out, in]` in storage dtype: it minimises Σ‖Δ_i‖². Summed in float32.

    members: the experts to take (default: all). weights: how much each of them counts.
    """
    experts = range(group.shape[0]) if members is None else members
    count = len(experts) if weights is None else sum(weights)
    return elementwise(group, experts, lambda part: mean_of(part, weights, count))


def median_base(group: ExpertGroup) -> torch.Tensor:
    """The experts' elementwise median `[out, in]` in storage dtype, the lower one of two: it
    minimises Σ|Δ_i|, and at every place one delta is zero."""
    return elementwise(group, range(group.shape[0]), median_of)


def mean_of(part: torch.Tensor, weights: Sequence[float] | None, count: float) -> torch.Tensor:
    """Σ weight · expert / count over the experts of `[K, rows, in]` in order, each step rounded to
    float32: `[rows, in]`."""
    if kernels.takes_stored(part):
        from ders_core.compute.kernels import averages

        factors = np.array([] if weights is None else weights, dtype=np.float32)
        average, experts, kind = _for_loops(part)
        averages.mean(experts, kind, factors, np.float32(count), kernels.bits(average).reshape(-1))
        return average
    total = torch.zeros(part.shape[1:], dtype=torch.float32)
    for number, rows in enumerate(part.unbind()):
        total += rows if weights is None else rows.float() * weights[number]
    return total / count


def median_of(part: torch.Tensor) -> torch.Tensor:
    """The lower median over the experts of `[K, rows, in]`: `[rows, in]`; NaN where one is, and
    zero without its sign."""
    if kernels.takes_stored(part):
        from ders_core.compute.kernels import averages

        average, experts, kind = _for_loops(part)
        averages.median(experts, kind, kernels.bits(average).reshape(-1))
        return average
    return part.float().median(0).values + 0.0


def _for_loops(part: torch.Tensor) -> tuple[torch.Tensor, np.ndarray, int]:
    """(memory for the average, the experts' bits `[K, n]`, their kind)."""
    bits = kernels.bits(part)
    average = fresh(part.shape[1:], part.dtype)
    return average, bits.reshape(len(bits), -1), kernels.kind_of(part.dtype)


def around_mean(group: ExpertGroup, device: torch.device | str = "cpu") -> Decomposition:
    """Decompose against the experts' mean. Raises CheckpointError for values not finite."""
    return decompose(group, mean_base(group).to(device))


def elementwise(
    group: ExpertGroup, members: Sequence[int], value: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """A base `[out, in]` in storage dtype, computed from a few rows of the members at a time.

    value: from their weights `[members, rows, in]` in storage dtype to `[rows, in]`. It may be
    called with transposed weights, so it must treat every element alike.
    """
    chosen = replace(group, experts=tuple(group.experts[expert] for expert in members))
    lying = chosen.as_it_lies()
    _, out, width = lying.shape
    base = fresh((out, width), group.dtype.torch)

    def average(rows: slice, slab: torch.Tensor) -> None:
        if kernels.takes_stored(slab):  # loops take pieces themselves
            base[rows] = value(slab)
            return
        for part in row_pieces(slab.shape[1:], CHUNK // len(members)):
            base[rows][part] = value(slab[:, part])

    each_slab(lying, average, available_threads())
    return base if lying is chosen else base.T.contiguous()
