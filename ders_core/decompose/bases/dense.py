"""`dense`: the dense model that the experts were copied from (the paper's choice)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ders_core.checkpoint import DenseFFN, ExpertGroup, dense_ffns
from ders_core.compute.magnitude import unit_rows
from ders_core.decompose.base import BASES, Base, BaseContext
from ders_core.decompose.decomposition import Decomposition, decompose
from ders_core.errors import CheckpointError
from ders_core.files.cache import opened
from ders_core.files.store import TensorStore
from ders_core.later import torch
from ders_core.units import number_text

LEAST_SIMILARITY = 0.5
"""A dense parent whose cosine with the experts' mean is below this is not their parent."""


@BASES.register
class DenseBase(Base):
    """The FFN of the dense parent, layer by layer."""

    name: ClassVar[str] = "dense"
    label: ClassVar[str] = "dense parent"
    summary: ClassVar[str] = "The paper takes the dense model that the experts were copied from."
    order: ClassVar[int] = 60
    is_made_in_slabs: ClassVar[bool] = False  # each expert is compared with it

    dense: Path = Field(
        title="Dense model's directory", description="the directory of the dense parent"
    )

    @classmethod
    def spelling(cls) -> str:
        return "{dense: PATH} with the dense model's directory"

    def check_files(self) -> None:
        DenseParent.open(self.dense)

    def identity(self) -> str:
        return DenseParent.open(self.dense).store.content()

    def decompositions(
        self, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        parent: DenseParent = opened(DenseParent.open, str(self.dense))
        parent.store.hold()
        yield self.name, decompose(group, parent.base(group).to(context.device))


@dataclass(frozen=True)
class DenseParent:
    """A dense model whose FFN is the base of every layer."""

    store: TensorStore
    ffns: tuple[DenseFFN, ...]

    @classmethod
    def open(cls, path: str | Path) -> DenseParent:
        """Raises CheckpointError if the directory is not a checkpoint, or its FFN is not known."""
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
        candidates = [
            ffn.weights[group.projection]
            for ffn in self.ffns
            if ffn.layer == group.block.layer and group.projection in ffn.weights
        ]
        if not candidates:
            raise CheckpointError(
                f"{where} has no {group.projection} weight in its layer {group.block.layer} that "
                f"{group.block.name!r} could come from, so it is not the parent"
            )
        matrix = next((weight for weight in candidates if weight.shape == group.shape[1:]), None)
        if matrix is None:
            raise CheckpointError(
                f"{where}: {candidates[0].tensor!r} is {list(candidates[0].shape)}, the experts "
                f"are {list(group.shape[1:])}; it is not the parent"
            )
        base = matrix.matrix(self.store.tensors).read().to(group.dtype.torch)
        cosine = _mean_cosine(base, group)
        if not cosine >= LEAST_SIMILARITY:
            raise CheckpointError(
                f"{where} is not the parent of these experts: at layer {group.layer}, "
                f"{group.projection} their cosine is {number_text(cosine)}, below "
                f"{LEAST_SIMILARITY}; name the right parent or use base: mean"
            )
        return base


def _mean_cosine(base: torch.Tensor, group: ExpertGroup) -> float:
    """The mean over experts of their cosine with the base, NaN if a value is not finite."""
    flat = unit_rows(base.reshape(1, -1))[0]
    cosines = [
        float(flat @ unit_rows(group.read(expert).reshape(1, -1))[0])
        for expert in range(group.shape[0])
    ]
    return sum(cosines) / len(cosines)
