"""What a budget is shared out over: each thing whose codec can be chosen by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ders_core.checkpoint import Checkpoint
from ders_core.checkpoint.others import Kind
from ders_core.recipe.rule import USUAL_KINDS

Part = Literal["deltas", "base", "tensor"]


@dataclass(frozen=True)
class Unit:
    """part: the deltas of a group or of one of its experts, a group's base, or a tensor outside the
    experts. layer: counted as MoE layers are; None for a tensor outside of the layers. projection:
    of a group, else "". expert: None for all of a group. name, kind: of a tensor outside the
    experts, else "" and None. weights: how many values it has. nbytes: as they lie in the
    checkpoint; 0 of a base, which is not there."""

    part: Part
    layer: int | None
    projection: str
    expert: int | None
    name: str
    kind: Kind | None
    weights: int
    nbytes: int

    @property
    def group(self) -> tuple[int, str] | None:
        """Layer and projection of what holds experts, or their base."""
        if self.part == "tensor":
            return None
        assert self.layer is not None, "experts lie in layers"
        return self.layer, self.projection

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        if self.part == "tensor":
            return self.name
        where = f"layer {self.layer}, {self.projection}"
        if self.part == "base":
            return f"{where}, base"
        return where if self.expert is None else f"{where}, expert {self.expert}"


def units_of(checkpoint: Checkpoint, *, per_expert: bool = False) -> list[Unit]:
    """The units of a checkpoint, each group's base behind its experts. Reads headers only.

    Routers, norms and vectors are none: they are small, and a model is sensitive to them.
    per_expert: whether each expert is one, or each group.
    """
    units = []
    for group in checkpoint.groups():
        count, out, width = group.shape
        experts: list[int | None] = list(range(count)) if per_expert else [None]
        for expert in experts:
            of_all = expert is None
            weights = out * width * (count if of_all else 1)
            nbytes = group.nbytes if of_all else group.nbytes // count
            units.append(Unit("deltas", *group.key, expert, "", None, weights, nbytes))
        units.append(Unit("base", *group.key, None, "", None, out * width, 0))
    for other in checkpoint.others.values():
        if other.kind in USUAL_KINDS:
            weights = other.nbytes // other.dtype.itemsize
            units.append(
                Unit("tensor", other.layer, "", None, other.name, other.kind, weights, other.nbytes)
            )
    return units
