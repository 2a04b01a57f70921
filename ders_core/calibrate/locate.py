"""Where each expert's weights lie in a model's memory, told by comparing values with the
checkpoint's."""

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
class Place:
    """The weights of one expert in the model's memory. end: address after the last of them."""

    layer: int
    side: str
    expert: int
    end: int


@dataclass(frozen=True)
class _Probe:
    """Rows of a group on disk by which it is known: of the first and the last expert, the first and
    the last. rows: (expert, row) -> `[in]`."""

    group: ExpertGroup
    rows: dict[tuple[int, int], torch.Tensor]

    @classmethod
    def of(cls, group: ExpertGroup) -> _Probe:
        experts, out, _ = group.shape
        places = [(expert, row) for expert in {0, experts - 1} for row in {0, out - 1}]
        rows = {(k, row): group.read(k, slice(row, row + 1))[0] for k, row in places}
        return cls(group, rows)

    def finds(self, bank: tuple[torch.Tensor, ...]) -> bool:
        """Whether these matrices, one for each expert, are the group's weights, alone or beside
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

    def _same(self, mine: torch.Tensor, own: torch.Tensor) -> bool:
        """Whether two rows hold the same numbers, but for the rounding of a dequantization."""
        mine, own = mine.cpu(), own.to(mine.dtype)
        if self.group.is_quantized:
            return torch.allclose(mine, own, rtol=2**-6, atol=0)
        return torch.equal(mine, own)


def _arrangements(weight: torch.Tensor, out: int, width: int) -> Iterator[torch.Tensor]:
    """Every `[out, in]` that a matrix may hold: itself or transposed, whole or one of two or three
    projections, one after another or taking turns."""
    for turned in (weight, weight.T):
        parts, rest = divmod(turned.shape[0], out)
        if turned.shape[1] == width and not rest and 1 <= parts <= 3:
            for part in range(parts):
                yield turned[part * out : (part + 1) * out]
                if parts > 1:
                    yield turned[part::parts]


def _banks(model: PreTrainedModel, experts: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """What may be the weights of so many experts, a matrix for each, in the order of layers."""
    numbered: dict[str, dict[int, torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if weight.dim() == 3 and len(weight) >= experts:  # more where some pass their input on
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


def find_places(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[int, Place]:
    """Address of an expert's first weight -> whose it is.

    gate and up are multiplied with the same, so one of them is watched: the first that a layer has.
    Layers behind a stack's last that the model holds (those for predicting several tokens, which
    transformers leaves on disk), and stacks of which it holds none, are left out.
    Raises EvaluationError for any other layer whose weights are not in the model as on disk.
    """
    groups = {(group.layer, SIDES[group.projection]): group for group in checkpoint.groups()[::-1]}
    banks = {count: list(_banks(model, count)) for count in {g.shape[0] for g in groups.values()}}
    places: dict[int, Place] = {}
    absent: list[ExpertGroup] = []
    for (layer, side), group in sorted(groups.items(), key=lambda item: item[0]):
        probe, own = _Probe.of(group), banks[group.shape[0]]
        found = next((n for n, bank in enumerate(own) if probe.finds(bank)), None)
        if found is None:
            absent.append(group)
            continue
        for expert, weight in enumerate(own.pop(found)[: group.shape[0]]):
            end = weight.data_ptr() + weight.numel() * weight.itemsize
            places[weight.data_ptr()] = Place(layer, side, expert, end)
    stacks = {group.layer: group.block.stack for group in groups.values()}
    last = {0: max(stacks)} | {stacks[own.layer]: own.layer for own in places.values()}
    for group in absent:
        if group.layer <= last.get(group.block.stack, -1):
            raise EvaluationError(
                f"layer {group.layer}, {group.projection}: the model that transformers makes of "
                f"{checkpoint.path} holds no weights equal to its experts', so what they are "
                "multiplied with cannot be told; another dtype, or cpu, may keep them as they are"
            )
    return places
