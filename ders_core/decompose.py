"""Decompose: one base for all experts of a group, and each expert's delta against it.

W_i = W_base + Δ_i (DeRS eq. 2). The base is rounded to the storage dtype first, so that its
rounding is part of the deltas and not everybody's error. One expert is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ders_core.checkpoint import ExpertGroup, Layout, TensorStore
from ders_core.errors import CheckpointError

CHUNK_VALUES = 1 << 22
LEAST_SIMILARITY = 0.5
"""A dense parent whose cosine with the experts' mean is below this is not their parent."""


@dataclass(frozen=True)
class Decomposition:
    """base: `[out, in]` in storage dtype; deltas come one at a time, `[out, in]` float32."""

    group: ExpertGroup
    base: torch.Tensor

    def weight(self, expert: int) -> torch.Tensor:
        """W_i `[out, in]` in storage dtype, on the base's device. Refuses non-finite values."""
        weight = self.group.read(expert).to(self.base.device)
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(
                f"{self.group.sources[expert]} holds values that are not finite (NaN or infinity); "
                "the checkpoint is damaged, or keep this group as it is (codec: keep)"
            )
        return weight

    def delta(self, expert: int) -> torch.Tensor:
        """Δ_i = W_i − W_base `[out, in]` float32."""
        return self.weight(expert).float().sub_(self.base.float())

    def deltas(self) -> Iterator[torch.Tensor]:
        for expert in range(self.group.shape[0]):
            yield self.delta(expert)


def mean_base(group: ExpertGroup) -> torch.Tensor:
    """The experts' mean `[out, in]` in storage dtype: it minimises Σ‖Δ_i‖². Summed in float32."""
    experts, out, width = group.shape
    base = torch.empty(out, width, dtype=group.dtype)
    step = max(1, CHUNK_VALUES // max(width, 1))
    for begin in range(0, out, step):
        rows = slice(begin, min(begin + step, out))
        total = torch.zeros(rows.stop - begin, width, dtype=torch.float32)
        for expert in range(experts):
            total += group.read(expert, rows).float()
        base[rows] = (total / experts).to(group.dtype)
    return base


@dataclass(frozen=True)
class DenseParent:
    """A dense model whose FFN is the base of every layer (the paper's choice)."""

    store: TensorStore

    @classmethod
    def open(cls, path: str | Path) -> DenseParent:
        return cls(TensorStore.open(path))

    def base(self, group: ExpertGroup, layout: Layout) -> torch.Tensor:
        """The parent's FFN weight `[out, in]` in the group's dtype.

        Raises CheckpointError if it is missing, of another shape, or clearly not the parent.
        """
        name = layout.dense_of(group.layer, group.projection)
        where = f"the dense model {self.store.path.name}"
        info = self.store.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{where} has no tensor {name!r}, so it is not the parent")
        if info.shape != group.shape[1:]:
            raise CheckpointError(
                f"{where}: {name!r} is {list(info.shape)}, the experts are "
                f"{list(group.shape[1:])}; it is not the parent"
            )
        base = info.read().to(group.dtype)
        cosine = float(
            torch.nn.functional.cosine_similarity(
                base.flatten().double(), group.read(0).flatten().double(), dim=0
            )
        )
        if not cosine >= LEAST_SIMILARITY:
            raise CheckpointError(
                f"{where} is not the parent of these experts: at layer {group.layer}, "
                f"{group.projection} their cosine is {cosine:.3g}, below {LEAST_SIMILARITY}; "
                "name the right parent or use base: mean"
            )
        return base


def decompose(
    group: ExpertGroup,
    layout: Layout,
    parent: DenseParent | None = None,
    device: torch.device | str = "cpu",
) -> Decomposition:
    """Decompose against the dense parent where one is given, else against the experts' mean."""
    base = parent.base(group, layout) if parent else mean_base(group)
    decomposition = Decomposition(group, base.to(device))
    if not bool(torch.isfinite(base).all()):
        for expert in range(group.shape[0]):
            decomposition.weight(expert)  # refuses the one at fault by its name
        raise CheckpointError(
            f"layer {group.layer}, {group.projection}: the base is not finite, because values are "
            "too large; keep this group as it is (codec: keep)"
        )
    return decomposition


def combine(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Synthesis (DeRS eq. 2): Ŵ = W_base + F(Δ), added in float32, in the base's dtype."""
    return delta.add_(base.float()).to(base.dtype)
