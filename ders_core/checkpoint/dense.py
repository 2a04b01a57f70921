"""The FFNs of a dense model: the base that an upcycled model's experts started from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ders_core.checkpoint.axes import PART
from ders_core.checkpoint.layouts import dense_layouts
from ders_core.checkpoint.matrix import Matrix, Slot
from ders_core.files.header import TensorInfo


@dataclass(frozen=True)
class DenseFFN:
    """One layer's FFN: each projection's weight `[out, in]`. block: its name in the model."""

    block: str
    layer: int
    weights: dict[str, Matrix] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether up, down and the gate, if there is one, belong to one FFN."""
        if not {"up", "down"} <= self.weights.keys():
            return False
        up = self.weights["up"].shape
        gate = self.weights.get("gate", self.weights["up"]).shape
        return up == gate == self.weights["down"].shape[::-1]


def dense_ffns(tensors: Mapping[str, TensorInfo]) -> list[DenseFFN]:
    """Every FFN in a known form, whatever else the model holds; biases are left out."""
    found: dict[tuple[str, str], DenseFFN] = {}
    for layout in dense_layouts():
        for name, info in tensors.items():
            place = layout.match(name)
            if place is None:
                continue
            key = place.block, layout.family
            ffn = found.setdefault(key, DenseFFN(place.block, place.layer))
            axes, holds = place.weights.parsed, place.weights.holds
            try:
                sizes = axes.sizes(info.shape, {PART: len(holds)})
            except ValueError:
                continue  # a norm or the like that has an FFN's name
            for part, projection in enumerate(holds):
                ffn.weights[projection] = Matrix(info, Slot(axes, sizes, part=part))
    whole = [ffn for ffn in found.values() if ffn.is_whole]
    return list(
        {ffn.block: ffn for ffn in sorted(whole, key=lambda own: len(own.weights))}.values()
    )
