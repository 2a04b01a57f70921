"""The FFNs of a dense model: the base that an upcycled model's experts started from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ders_core.checkpoint.axes import PART
from ders_core.checkpoint.layouts import dense_layouts
from ders_core.checkpoint.matrix import Matrix, Slot
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import TensorReader


@dataclass(frozen=True)
class FFNWeight:
    """One projection of a dense FFN. tensor: the name of the tensor that holds it, at `slot`."""

    tensor: str
    dtype: Dtype
    slot: Slot

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.slot.shape

    def matrix(self, tensors: Mapping[str, TensorReader]) -> Matrix:
        """The weight, to be read from a model's tensors."""
        return Matrix(tensors[self.tensor], self.slot)


@dataclass(frozen=True)
class DenseFFN:
    """One layer's FFN. block: its name in the model. weights: by projection."""

    block: str
    layer: int
    weights: dict[str, FFNWeight] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether up, down and the gate, if there is one, belong to one FFN."""
        if not {"up", "down"} <= self.weights.keys():
            return False
        up = self.weights["up"].shape
        gate = self.weights.get("gate", self.weights["up"]).shape
        return up == gate == self.weights["down"].shape[::-1]


def dense_ffns(specs: Mapping[str, TensorSpec]) -> list[DenseFFN]:
    """Every FFN in a known form, whatever else the model holds; biases are left out.

    specs: dtype and shape of the model's tensors, by name.
    """
    ffns: dict[tuple[str, str], DenseFFN] = {}
    for layout in dense_layouts():
        for name, spec in specs.items():
            match = layout.match(name)
            if match is None:
                continue
            key = match.block, layout.family
            ffn = ffns.setdefault(key, DenseFFN(match.block, match.layer))
            axes, holds = match.weights.parsed, match.weights.holds
            try:
                sizes = axes.sizes(spec.shape, {PART: len(holds)})
            except ValueError:
                continue  # a norm, or such, that has an FFN's name
            for part, projection in enumerate(holds):
                slot = Slot(axes, sizes, part=part)
                ffn.weights[projection] = FFNWeight(name, spec.dtype, slot)
    complete = [ffn for ffn in ffns.values() if ffn.is_whole]
    # of two forms of one block, the one with more weights comes last and stays
    by_block = {ffn.block: ffn for ffn in sorted(complete, key=lambda ffn: len(ffn.weights))}
    return list(by_block.values())
