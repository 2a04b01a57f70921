"""Find every projection of every expert in a model's memory: each one's rows, fused or not."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ders_core.calibrate.banks import Bank, Probe, banks
from ders_core.calibrate.placement import Placement, Region, Regions
from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.errors import EvaluationError


@dataclass(frozen=True)
class LocatedGroup:
    """A group's weights where the model keeps them.

    weights: a view `[out, in]` for each routed expert, and for the always-on one, the last, where
    it is of the extended group and in the model. matrices: the whole matrices that hold them.
    """

    group: ExpertGroup
    weights: Bank
    matrices: Bank

    @property
    def routed(self) -> int:
        """How many of the experts are routed."""
        return self.group.shape[0]


def locate_projections(
    model: PreTrainedModel, checkpoint: Checkpoint, layers: Collection[int]
) -> list[LocatedGroup]:
    """Every group of these layers. Raises EvaluationError if the model does not hold one's weights
    as they are on disk."""
    groups = [group for group in checkpoint.groups() if group.layer in layers]
    free = {count: list(banks(model, count)) for count in {group.shape[0] for group in groups}}
    of_layer: dict[int, list[Bank]] = {}
    located: list[LocatedGroup] = []
    for group in groups:
        probe, mine = Probe.of(group.experts), of_layer.setdefault(group.layer, [])
        bank = _first(probe, mine)  # gate and up may lie in one tensor
        if bank is None:
            bank = _first(probe, free[group.shape[0]])
            if bank is None:
                raise EvaluationError(
                    f"layer {group.layer}, {group.projection}: the model that transformers makes "
                    f"of {checkpoint.path} holds no weights equal to its experts', so gradients "
                    "cannot be told apart; calibrate without gradients"
                )
            free[group.shape[0]] = [each for each in free[group.shape[0]] if each is not bank]
            mine.append(bank)
        located.append(LocatedGroup(group, probe.views(bank), bank[: group.shape[0]]))
    return _with_shared(model, located)


def _first(probe: Probe, candidates: Iterable[Bank]) -> Bank | None:
    return next((bank for bank in candidates if probe.matches(bank)), None)


def _with_shared(model: PreTrainedModel, located: list[LocatedGroup]) -> list[LocatedGroup]:
    """The groups with their always-on experts, where these are found."""
    taken = {matrix.data_ptr() for each in located for matrix in each.matrices}
    alone: list[Bank] = [
        (parameter.detach(),)
        for parameter in model.parameters()
        if parameter.dim() == 2 and parameter.data_ptr() not in taken
    ]
    complete = []
    for each in located:
        shared = each.group.shared
        if shared is not None and each.group.with_shared() is not each.group:
            probe = Probe.of((shared,))
            bank = _first(probe, alone)
            if bank is not None:
                weights = each.weights + probe.views(bank)
                each = LocatedGroup(each.group, weights, each.matrices + bank)
        complete.append(each)
    return complete


def regions_of(
    located: Iterable[LocatedGroup], others: Iterable[tuple[torch.Tensor, Placement]] = ()
) -> Regions:
    """The memory of all these experts, and of other matrices with what lies in them."""
    matrices: dict[int, torch.Tensor] = {}
    placements: dict[int, list[Placement]] = {}
    for each in located:
        for expert, (weight, matrix) in enumerate(zip(each.weights, each.matrices, strict=True)):
            matrices[matrix.data_ptr()] = matrix
            placements.setdefault(matrix.data_ptr(), []).append(
                Placement.of(each.group.key, expert, weight)
            )
    for matrix, placement in others:
        matrices.setdefault(matrix.data_ptr(), matrix)
        placements.setdefault(matrix.data_ptr(), []).append(placement)
    return Regions([Region.of(matrices[start], placements[start]) for start in matrices])
