"""Find each expert's weights in a model's memory, by comparing values with the checkpoint's."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from ders_core.calibrate.banks import Probe, banks
from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.errors import EvaluationError
from ders_core.pipeline.calibration import SIDES


@dataclass(frozen=True)
class WeightLocation:
    """The weights of one expert in the model's memory. end: the address after the last of them."""

    layer: int
    side: str
    expert: int
    end: int


def locate_weights(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[int, WeightLocation]:
    """Address of an expert's first weight -> layer, side and expert.

    gate and up have the same input, so one of them is located: the first that a layer has.
    Layers behind the last one of a stack that the model holds (those that predict several tokens,
    which transformers leaves on disk), and stacks that it does not load, are left out.
    Raises EvaluationError for any other layer whose weights are not in the model as on disk.
    """
    groups = {(group.layer, SIDES[group.projection]): group for group in checkpoint.groups()[::-1]}
    counts = {group.shape[0] for group in groups.values()}
    candidates = {count: list(banks(model, count)) for count in counts}
    locations: dict[int, WeightLocation] = {}
    absent: list[ExpertGroup] = []
    for (layer, side), group in sorted(groups.items(), key=lambda item: item[0]):
        probe, left = Probe.of(group.experts), candidates[group.shape[0]]
        number = next((n for n, bank in enumerate(left) if probe.matches(bank)), None)
        if number is None:
            absent.append(group)
            continue
        for expert, weight in enumerate(left.pop(number)[: group.shape[0]]):
            end = weight.data_ptr() + weight.numel() * weight.itemsize
            locations[weight.data_ptr()] = WeightLocation(layer, side, expert, end)
    stacks = {group.layer: group.block.stack for group in groups.values()}
    last = {0: max(stacks)} | {
        stacks[location.layer]: location.layer for location in locations.values()
    }
    for group in absent:
        if group.layer <= last.get(group.block.stack, -1):
            raise EvaluationError(
                f"layer {group.layer}, {group.projection}: the model that transformers makes of "
                f"{checkpoint.path} holds no weights equal to its experts', so their "
                "inputs cannot be identified; another dtype, or cpu, may keep the weights unchanged"
            )
    return locations
