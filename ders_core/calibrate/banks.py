"""Matrices of a model that may be experts' weights, and whether they hold a checkpoint's values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ders_core.checkpoint import Matrix

Bank = tuple[torch.Tensor, ...]
"""Matrices of a model, one for each expert of a layer."""


@dataclass(frozen=True)
class Probe:
    """Rows on disk that identify the weights of experts: the first and the last row of the first
    and the last expert. rows: (expert, row) -> `[in]`. shape: of one weight."""

    experts: tuple[Matrix, ...]
    rows: dict[tuple[int, int], torch.Tensor]

    @classmethod
    def of(cls, experts: tuple[Matrix, ...]) -> Probe:
        out, last = experts[0].shape[0], len(experts) - 1
        corners = [(expert, row) for expert in {0, last} for row in {0, out - 1}]
        rows = {(k, row): experts[k].read(slice(row, row + 1))[0] for k, row in corners}
        return cls(experts, rows)

    def matches(self, bank: Bank) -> bool:
        """Whether these matrices, one for each expert, are the weights, alone or next to another
        projection's, in any arrangement."""
        return self._arrangement(bank) is not None

    def views(self, bank: Bank) -> Bank:
        """Each expert's `[out, in]` within matrices that match."""
        number = self._arrangement(bank)
        if number is None:
            raise ValueError("the matrices do not match")
        shape = self.experts[0].shape
        matrices = bank[: len(self.experts)]
        return tuple([*_arrangements(matrix, *shape)][number] for matrix in matrices)

    def _arrangement(self, bank: Bank) -> int | None:
        """The number of the arrangement in which the matrices are the weights."""
        last = len(self.experts) - 1
        if len(bank) <= last:
            return None
        views = [list(_arrangements(bank[k], *self.experts[0].shape)) for k in (0, last)]
        for number, (first, second) in enumerate(zip(*views, strict=False)):
            if all(
                self._same((first, second)[k > 0][row], numbers)
                for (k, row), numbers in self.rows.items()
            ):
                return number
        return None

    def _same(self, in_model: torch.Tensor, on_disk: torch.Tensor) -> bool:
        """Whether two rows hold the same numbers, but for the rounding of a dequantization."""
        in_model, on_disk = in_model.cpu(), on_disk.to(in_model.dtype)
        if self.experts[0].is_quantized:
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


def banks(model: PreTrainedModel, experts: int) -> Iterator[Bank]:
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
