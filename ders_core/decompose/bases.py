"""Decompose: a base for the experts of a group, and each expert's delta against it.

W_i = W_base + Δ_i (DeRS eq. 2). The base is rounded to the storage dtype first, so that its
rounding is part of the deltas and not everybody's error. One expert is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ders_core.checkpoint import DenseFFN, ExpertGroup, dense_ffns
from ders_core.checkpoint.streaming import matrices, slabs
from ders_core.compute.pieces import CHUNK, row_pieces
from ders_core.decompose.distortion import is_finite
from ders_core.errors import CheckpointError
from ders_core.files.store import TensorStore

LEAST_SIMILARITY = 0.5
"""A dense parent whose cosine with the experts' mean is below this is not their parent."""


@dataclass(frozen=True)
class Decomposition:
    """base: `[out, in]` in storage dtype, or `[bases, out, in]` where `bases` says which is whose.
    Deltas come one at a time, `[out, in]` float32."""

    group: ExpertGroup
    base: torch.Tensor
    bases: tuple[int, ...] | None = None

    def base_of(self, expert: int) -> torch.Tensor:
        """The expert's base `[out, in]`."""
        return self.base if self.bases is None else self.base[self.bases[expert]]

    def weights(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(i, W_i `[out, in]`) in storage dtype, on the base's device; one overwrites the other.
        Refuses non-finite values."""
        for expert, weight in matrices(self.group, self.base.device):
            yield expert, self._checked(expert, weight)

    def weight(self, expert: int) -> torch.Tensor:
        """W_i `[out, in]` in storage dtype, on the base's device. Refuses non-finite values."""
        return self._checked(expert, self.group.read(expert).to(self.base.device))

    def _checked(self, expert: int, weight: torch.Tensor) -> torch.Tensor:
        if not is_finite(weight):
            raise CheckpointError(
                f"{self.group.expert_name(expert)} holds values that are not finite (NaN or "
                "infinity); the checkpoint is damaged, or keep this group as it is (codec: keep)"
            )
        return weight

    def delta(self, expert: int) -> torch.Tensor:
        """Δ_i = W_i − W_base `[out, in]` float32."""
        return self.weight(expert).float().sub_(self.base_of(expert).float())

    def deltas(self, experts: Sequence[int] | None = None) -> Iterable[torch.Tensor]:
        """Those of `experts` (all), one at a time; may be gone through more than once."""
        return _Deltas(self, range(self.group.shape[0]) if experts is None else experts)


@dataclass(frozen=True)
class _Deltas:
    decomposition: Decomposition
    experts: Sequence[int]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(self.decomposition.delta, self.experts)


def mean_base(
    group: ExpertGroup,
    members: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """The experts' mean `[out, in]` in storage dtype: it minimises Σ‖Δ_i‖². Summed in float32.

    members: of these experts only. weights: of each of them, by how much it counts.
    """
    chosen = range(group.shape[0]) if members is None else members
    count = len(chosen) if weights is None else sum(weights)

    def mean(part: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(part.shape[1:], dtype=torch.float32)
        for number, own in enumerate(part.unbind()):
            total += own if weights is None else own.float() * weights[number]
        return total / count

    return _elementwise(group, chosen, mean)


def median_base(group: ExpertGroup) -> torch.Tensor:
    """The experts' elementwise median `[out, in]`, the lower one of two: it minimises Σ|Δ_i|, and
    at every place one delta is zero."""
    return _elementwise(group, range(group.shape[0]), lambda part: part.float().median(0).values)


def _elementwise(
    group: ExpertGroup, members: Sequence[int], value: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """`value` of the members' weights `[members, rows, in]` for all rows: `[out, in]` in storage
    dtype."""
    some = replace(group, experts=tuple(group.experts[own] for own in members))
    lying = some.as_it_lies()
    _, out, width = lying.shape
    base = torch.empty(out, width, dtype=group.dtype)
    for rows, slab in slabs(lying):
        for part in row_pieces(slab.shape[1:], CHUNK // len(members)):
            base[rows][part] = value(slab[:, part])
    return base if lying is some else base.T.contiguous()


@dataclass(frozen=True)
class DenseParent:
    """A dense model whose FFN is the base of every layer (the paper's choice)."""

    store: TensorStore
    ffns: tuple[DenseFFN, ...]

    @classmethod
    def open(cls, path: str | Path) -> DenseParent:
        """Raises CheckpointError if it is no checkpoint, or has no FFN of a known form."""
        store = TensorStore.open(path)
        ffns = dense_ffns(store.specs)
        if not ffns:
            raise CheckpointError(
                f"the dense model {store.path.name} has no FFN that is known here (gate_proj, "
                "up_proj and down_proj, or fc1 and fc2, and the like), so it cannot be the base"
            )
        return cls(store, tuple(ffns))

    def base(self, group: ExpertGroup) -> torch.Tensor:
        """The parent's FFN weight `[out, in]` in the group's dtype.

        Raises CheckpointError if it is missing, of another shape, or clearly not the parent.
        """
        where = f"the dense model {self.store.path.name}"
        found = [
            ffn.weights[group.projection]
            for ffn in self.ffns
            if ffn.layer == group.block.layer and group.projection in ffn.weights
        ]
        if not found:
            raise CheckpointError(
                f"{where} has no {group.projection} weight in its layer {group.block.layer} that "
                f"{group.block.name!r} could come from, so it is not the parent"
            )
        matrix = next((own for own in found if own.shape == group.shape[1:]), None)
        if matrix is None:
            raise CheckpointError(
                f"{where}: {found[0].tensor!r} is {list(found[0].shape)}, the experts are "
                f"{list(group.shape[1:])}; it is not the parent"
            )
        base = matrix.matrix(self.store.tensors).read().to(group.dtype)
        cosine = _mean_cosine(base, group)
        if not cosine >= LEAST_SIMILARITY:
            raise CheckpointError(
                f"{where} is not the parent of these experts: at layer {group.layer}, "
                f"{group.projection} their cosine is {cosine:.3g}, below {LEAST_SIMILARITY}; "
                "name the right parent or use base: mean"
            )
        return base


def _mean_cosine(base: torch.Tensor, group: ExpertGroup) -> float:
    """The mean over experts of their cosine with the base, NaN if something is not finite."""
    flat = base.flatten().double()
    cosines = [
        float(torch.nn.functional.cosine_similarity(flat, group.read(k).flatten().double(), dim=0))
        for k in range(group.shape[0])
    ]
    return sum(cosines) / len(cosines)


def around_mean(group: ExpertGroup, device: torch.device | str = "cpu") -> Decomposition:
    """Decompose against the experts' mean."""
    return _finite(Decomposition(group, mean_base(group).to(device)))


def around_median(group: ExpertGroup, device: torch.device | str = "cpu") -> Decomposition:
    """Decompose against the experts' elementwise median."""
    return _finite(Decomposition(group, median_base(group).to(device)))


def around_routed(
    group: ExpertGroup, tokens: Sequence[int], device: torch.device | str = "cpu"
) -> Decomposition:
    """Decompose against the experts' mean, each weighted by the share of tokens that chose it:
    what is used most gets the smallest delta. tokens: of each expert; if all are 0, the mean."""
    total = sum(tokens)
    weights = [count / total for count in tokens] if total else None
    return _finite(Decomposition(group, mean_base(group, weights=weights).to(device)))


def around_means(
    group: ExpertGroup, assignment: Sequence[int], device: torch.device | str = "cpu"
) -> Decomposition:
    """Decompose against several bases, each the mean of the experts that `assignment` gives it."""
    members: list[list[int]] = [[] for _ in range(max(assignment) + 1)]
    for expert, number in enumerate(assignment):
        members[number].append(expert)
    base = torch.stack([mean_base(group, own) for own in members]).to(device)
    return _finite(Decomposition(group, base, tuple(assignment)))


def from_parent(
    group: ExpertGroup, parent: DenseParent, device: torch.device | str = "cpu"
) -> Decomposition:
    """Decompose against the dense parent's FFN. Raises CheckpointError if it is not the parent."""
    return _finite(Decomposition(group, parent.base(group).to(device)))


def _finite(decomposition: Decomposition) -> Decomposition:
    group = decomposition.group
    if not is_finite(decomposition.base):
        for expert in range(group.shape[0]):
            decomposition.weight(expert)  # refuses the one at fault by its name
        raise CheckpointError(
            f"layer {group.layer}, {group.projection}: the base is not finite, because values are "
            "too large; keep this group as it is (codec: keep)"
        )
    return decomposition
