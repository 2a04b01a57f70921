"""Where a model keeps the tensors of its checkpoint, to write them and to read gradients."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from ders_core.calibrate.others import Piece, locate_others
from ders_core.calibrate.projections import locate_projections
from ders_core.checkpoint import Checkpoint
from ders_core.checkpoint.matrix import Slot
from ders_core.errors import EvaluationError
from ders_core.files.tensor import TensorReader

UNKNOWN = "the model holds no tensor with its values, or several"

BiasSlot = tuple[str, Slot]
"""The original's tensor that holds an expert's bias, and where in it."""


@dataclass(frozen=True)
class Place:
    """Rows of a matrix, and the memory of a parameter that holds them. view: `[rows, in]`, or a
    whole tensor, of the parameter's memory."""

    rows: slice
    view: torch.Tensor
    parameter: nn.Parameter

    def gradient(self) -> torch.Tensor:
        """Of the view, in its shape; zeros where the model made no use of it."""
        gradient = self.parameter.grad
        if gradient is None:
            return torch.zeros_like(self.view)
        if gradient.stride() != self.parameter.stride():
            gradient = torch.empty_like(self.parameter).copy_(gradient)
        begin = (self.view.data_ptr() - self.parameter.data_ptr()) // self.view.itemsize
        return gradient.as_strided(
            self.view.shape, self.view.stride(), gradient.storage_offset() + begin
        )


class Places:
    """The places of one matrix, all of whose rows are somewhere."""

    def __init__(self, pieces: Sequence[Place]) -> None:
        self.pieces = pieces

    def write(self, matrix: torch.Tensor) -> None:
        for piece in self.pieces:
            piece.view.copy_(matrix[piece.rows] if matrix.dim() else matrix)

    def gradient(self, shape: Sequence[int]) -> torch.Tensor:
        """`shape`, float32."""
        if len(self.pieces) == 1 and self.pieces[0].view.shape == tuple(shape):
            return self.pieces[0].gradient().float()
        view = self.pieces[0].view
        whole = torch.empty(tuple(shape), dtype=torch.float32, device=view.device)
        for piece in self.pieces:
            whole[piece.rows] = piece.gradient().float()
        return whole

    def of_rows(self, begin: int, end: int) -> Places:
        """Of the matrix of some of the rows."""
        return Places([part for each in self.pieces for part in _cut(each, begin, end)])

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [piece.parameter for piece in self.pieces]


def _cut(place: Place, begin: int, end: int) -> list[Place]:
    """The rows of a place that are among others, as rows of those."""
    step = place.rows.step or 1
    first = max(0, -((place.rows.start - begin) // step))
    last = min(place.view.shape[0], -((place.rows.start - end) // step))
    if first >= last:
        return []
    start = place.rows.start + first * step - begin
    rows = slice(start, start + (last - first - 1) * step + 1, step)
    return [Place(rows, place.view[first:last], place.parameter)]


@dataclass
class Located:
    """experts: layer and projection -> a place for each expert, of the extended group too where it
    was found. biases: prefix of a group -> the places of its experts' biases, a row each. tensors:
    name on disk -> its places. missing: name -> why it has none."""

    experts: dict[tuple[int, str], list[Places]] = field(default_factory=dict)
    biases: dict[str, Places] = field(default_factory=dict)
    tensors: dict[str, Places] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def locate(
    known: PreTrainedModel,
    checkpoint: Checkpoint,
    alike: PreTrainedModel,
    layers: Collection[int],
    matrices: Collection[str],
    plain: Collection[str],
    biases: Mapping[str, Sequence[BiasSlot]],
) -> Located:
    """Find in a model the experts of these layers, other matrices, tensors that the model holds as
    they are on disk, such as norms and routers, by their names there, and experts' biases in
    tensors that it holds so, by the prefix of their group.

    They are found by their values, which those of a packed model are not: in `known`, which was
    loaded from `checkpoint`, the original. The places are those of `alike`, a model of the same
    class and shapes. Raises EvaluationError if experts are not found; other tensors that are not
    are `missing`.
    """
    found, owners = Located(), _Owners(known, alike)
    try:
        groups = locate_projections(known, checkpoint, layers)
    except EvaluationError as error:
        raise EvaluationError(
            f"{checkpoint.path}: the model that transformers makes of it keeps its experts in a "
            "form that is not known here, so they cannot be repaired; leave it as it is"
        ) from error
    for group in groups:
        found.experts[group.group.key] = [
            Places([owners.place(slice(0, weight.shape[0], 1), weight)]) for weight in group.weights
        ]
    if matrices:
        everything = locate_projections(known, checkpoint, checkpoint.moe_layers)
        others = locate_others(known, checkpoint, everything)
        for tensor in others.tensors:
            if tensor.name in matrices:
                found.tensors[tensor.name] = Places(
                    [owners.place(_rows(piece), piece.weight) for piece in tensor.pieces]
                )
        for name in sorted(set(matrices) - found.tensors.keys()):
            reason = others.left_out.get(name, "it is no matrix of the model's")
            found.missing[name] = reason
    wholes: dict[str, torch.Tensor | None] = {
        name: owners.find(checkpoint.tensors[name])
        for name in sorted({name for slots in biases.values() for name, _ in slots})
    }
    for prefix, slots in biases.items():
        of_experts = [
            owners.place(slice(expert, expert + 1, 1), slot.view(whole.view(-1)).t())
            for expert, (name, slot) in enumerate(slots)
            if (whole := wholes[name]) is not None
        ]
        if len(of_experts) == len(slots):
            found.biases[prefix] = Places(of_experts)
        else:
            found.missing[f"{prefix}.bias"] = UNKNOWN
    for name in plain:
        whole = owners.find(checkpoint.tensors[name])
        if whole is None:
            found.missing[name] = UNKNOWN
        else:
            rows = slice(0, whole.shape[0], 1) if whole.dim() else slice(None)
            found.tensors[name] = Places([owners.place(rows, whole)])
    return found


def _rows(piece: Piece) -> slice:
    return slice(piece.rows.start, piece.rows.stop, piece.rows.step or 1)


class _Owners:
    """The parameters of one model, by address and by value, and those of another by their
    names."""

    def __init__(self, known: PreTrainedModel, alike: PreTrainedModel) -> None:
        self._named: dict[str, nn.Parameter] = dict(known.named_parameters())
        self._alike: dict[str, nn.Parameter] = dict(alike.named_parameters())

    def place(self, rows: slice, view: torch.Tensor) -> Place:
        """The same elements of the other model as a view shows of this one."""
        address = view.data_ptr()
        for name, parameter in self._named.items():
            begin = parameter.data_ptr()
            if begin <= address < begin + parameter.numel() * parameter.itemsize:
                other = self._alike[name]
                if other.stride() != parameter.stride():
                    raise AssertionError(f"{name} lies otherwise in the two models")
                first = (address - begin) // view.itemsize
                seen = other.detach().as_strided(
                    view.shape, view.stride(), other.storage_offset() + first
                )
                return Place(rows, seen, other)
        raise AssertionError("a view of no parameter")

    def find(self, tensor: TensorReader) -> torch.Tensor | None:
        """The whole parameter of this name and value; else the one with this value whose name is
        the most alike, if one is."""
        values = tensor.read()
        same = {
            name: parameter.detach()
            for name, parameter in self._named.items()
            if parameter.shape == values.shape
            and parameter.is_contiguous()
            and torch.equal(parameter.detach().cpu(), values.to(parameter.dtype))
        }
        if tensor.name in same:
            return same[tensor.name]
        likeness = {name: _likeness(tensor.name, name) for name in same}
        best = [name for name in same if likeness[name] == max(likeness.values())]
        return same[best[0]] if len(best) == 1 else None


def _likeness(name: str, other: str) -> int:
    """The most parts between dots that two names have in common, in order."""
    first, second = name.split("."), other.split(".")
    counts = [0] * (len(second) + 1)
    for part in first:
        before = counts[:]
        for place, candidate in enumerate(second):
            counts[place + 1] = (
                before[place] + 1 if part == candidate else max(before[place + 1], counts[place])
            )
    return counts[-1]
