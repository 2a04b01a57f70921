"""Find each expert's weights in a model's memory, by comparing values with the checkpoint's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

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


@dataclass(frozen=True)
class _Probe:
    """Rows of a group on disk that identify it: the first and the last row of the first and the
    last expert. rows: (expert, row) -> `[in]`."""

    group: ExpertGroup
    rows: dict[tuple[int, int], torch.Tensor]

    @classmethod
    def of(cls, group: ExpertGroup) -> _Probe:
        experts, out, _ = group.shape
        corners = [(expert, row) for expert in {0, experts - 1} for row in {0, out - 1}]
        rows = {(k, row): group.read(k, slice(row, row + 1))[0] for k, row in corners}
        return cls(group, rows)

    def matches(self, bank: tuple[torch.Tensor, ...]) -> bool:
        """Whether these matrices, one for each expert, are the group's weights, alone or next to
        another projection's, in any arrangement."""
        experts, out, width = self.group.shape
        if len(bank) < experts:
            return False
        views = [list(_arrangements(weight, out, width)) for weight in (bank[0], bank[experts - 1])]
        return any(
            all(
                self._same((first, last)[k > 0][row], numbers)
                for (k, row), numbers in self.rows.items()
            )
            for first, last in zip(*views, strict=False)
        )

    def _same(self, in_model: torch.Tensor, on_disk: torch.Tensor) -> bool:
        """Whether two rows hold the same numbers, but for the rounding of a dequantization."""
        in_model, on_disk = in_model.cpu(), on_disk.to(in_model.dtype)
        if self.group.is_quantized:
            return torch.allclose(in_model, on_disk, rtol=2**-6, atol=0)
        return torch.equal(in_model, on_disk)


def _arrangements(weight: torch.Tensor, out: int, width: int) -> Iterator[torch.Tensor]:
    """Every `[out, in]` that a matrix may hold: as it is or transposed; one projection, or one of
    two or three, one after another or row by row in turn."""
    for turned in (weight, weight.T):
        parts, rest = divmod(turned.shape[0], out)
        if turned.shape[1] == width and not rest and 1 <= parts <= 3:
            for part in range(parts):
                yield turned[part * out : (part + 1) * out]
                if parts > 1:
                    yield turned[part::parts]


def _banks(model: PreTrainedModel, experts: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Candidates for the weights of a layer's experts, one matrix for each, in layer order."""
    numbered: dict[str, dict[int, torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if weight.dim() == 3 and len(weight) >= experts:  # more if there are identity experts
            yield tuple(weight)
        if weight.dim() != 2:
            continue
        if len(weight) % experts == 0 and weight.is_contiguous():  # stacked along the rows
            yield tuple(weight.view(experts, -1, weight.shape[1]))
        for number in re.finditer(r"(?<=[._])\d+(?=\.)", name):
            alike = f"{name[: number.start()]}*{name[number.end() :]}"
            numbered.setdefault(alike, {})[int(number[0])] = weight
    for weights in numbered.values():
        if all(expert in weights for expert in range(experts)):
            yield tuple(weights[expert] for expert in range(experts))


def locate_weights(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[int, WeightLocation]:
    """Address of an expert's first weight -> layer, side and expert.

    gate and up have the same input, so one of them is located: the first that a layer has.
    Layers behind the last one of a stack that the model holds (those that predict several tokens,
    which transformers leaves on disk), and stacks that it does not load, are left out.
    Raises EvaluationError for any other layer whose weights are not in the model as on disk.
    """
    groups = {(group.layer, SIDES[group.projection]): group for group in checkpoint.groups()[::-1]}
    banks = {count: list(_banks(model, count)) for count in {g.shape[0] for g in groups.values()}}
    locations: dict[int, WeightLocation] = {}
    absent: list[ExpertGroup] = []
    for (layer, side), group in sorted(groups.items(), key=lambda item: item[0]):
        probe, candidates = _Probe.of(group), banks[group.shape[0]]
        number = next((n for n, bank in enumerate(candidates) if probe.matches(bank)), None)
        if number is None:
            absent.append(group)
            continue
        for expert, weight in enumerate(candidates.pop(number)[: group.shape[0]]):
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
