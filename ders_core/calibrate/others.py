"""Find the checkpoint's other matrices in a model's memory: attention, dense FFNs, always-on
experts, embeddings, the output layer.

As experts are: by comparing values, whatever names and forms the model gives them. A matrix is in
the model as it is, or its rows are rows of one or several of the model's matrices, at equal
distances: q, k and v in one, gate and up in turn, one that was cut into three. A tensor
`[matrices, n, m]`, such as several always-on experts in one, is a matrix of all their rows.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from ders_core.calibrate.placement import Placement
from ders_core.calibrate.projections import LocatedGroup
from ders_core.calibrate.row_marks import row_marks
from ders_core.checkpoint import Checkpoint
from ders_core.checkpoint.grouping import WEIGHT_DTYPES
from ders_core.files.tensor import TensorReader

SLAB = 1 << 22
"""Values of a tensor that are read at once."""

ABSENT = "the model that transformers makes of it holds no matrix with these values"
UNLIKE = "the model keeps its rows in another order, or among others that are equal"
EQUAL = "several matrices of the model have the same values"
SHAPE = "it is no matrix of numbers"
ROUTER = "it is a router"
CODES = "its values are codes"


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor, and where the model keeps them. weight: `[rows, columns]`, a view of its
    memory. matrix: the whole that holds it."""

    rows: slice
    weight: torch.Tensor
    matrix: torch.Tensor


@dataclass(frozen=True)
class LocatedTensor:
    """A matrix `[n, m]` of the checkpoint, by its name there. pieces: all its rows. stacked: how
    many matrices with inputs of their own it is, one after another."""

    name: str
    shape: tuple[int, int]
    pieces: tuple[Piece, ...]
    stacked: int = 1

    def placements(self) -> Iterator[tuple[torch.Tensor, Placement]]:
        """Each piece's whole matrix, and the place of the piece: part 2·p. A matrix that is there
        as it is may also be one of inputs by rows, `[in, out]`: part 1 is the transpose."""
        for number, piece in enumerate(self.pieces):
            yield piece.matrix, Placement.of(self.name, 2 * number, piece.weight)
        if len(self.pieces) == 1:
            whole = self.pieces[0]
            yield whole.matrix, Placement.of(self.name, 1, whole.weight.T)


@dataclass(frozen=True)
class Others:
    """tensors: what was found. left_out: name -> why a matrix was not found."""

    tensors: list[LocatedTensor] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def locate_others(
    model: PreTrainedModel, checkpoint: Checkpoint, located: Iterable[LocatedGroup]
) -> Others:
    """All matrices but routed experts and routers. located: the experts, whose memory is theirs."""
    routers = {group.router for group in checkpoint.groups()}
    search = _Search(model, located)
    others, later = Others(), list[TensorReader]()
    for tensor in checkpoint.other_tensors():
        if len(tensor.shape) < 2:
            continue  # norms and biases
        reason = _reason(tensor, routers)
        if reason:
            others.left_out[tensor.name] = reason
            continue
        found = search.as_it_is(tensor)
        if isinstance(found, LocatedTensor):
            others.tensors.append(found)
        elif found:
            others.left_out[tensor.name] = found
        else:
            later.append(tensor)
    for tensor in later:
        found = search.row_by_row(tensor)
        if isinstance(found, LocatedTensor):
            others.tensors.append(found)
        else:
            others.left_out[tensor.name] = found
    return others


def _reason(tensor: TensorReader, routers: Collection[str | None]) -> str | None:
    """Why a tensor is none of these matrices."""
    if tensor.name in routers:
        return ROUTER
    if tensor.dtype not in WEIGHT_DTYPES:
        return CODES
    is_matrix = len(tensor.shape) == 2 or (len(tensor.shape) == 3 and tensor.shape[1] > 1)
    return None if is_matrix and 0 not in tensor.shape else SHAPE


def other_bytes(checkpoint: Checkpoint, max_width: int) -> int:
    """Bytes at the most of what is measured of all these matrices: marginals, and moments of inputs
    up to a width, plain and weighted, as if no two had the same inputs."""
    shapes = [
        _rows_and_columns(tensor)
        for tensor in checkpoint.other_tensors()
        if tensor.dtype in WEIGHT_DTYPES and len(tensor.shape) in (2, 3)
    ]
    return sum(
        4 * (rows + width + 2 * width * (width if width <= max_width else 1))
        for rows, width in shapes
    )


class _Search:
    """The model's matrices that hold no routed expert, by their names."""

    def __init__(self, model: PreTrainedModel, located: Iterable[LocatedGroup]) -> None:
        experts = sorted(
            (matrix.data_ptr(), matrix.data_ptr() + matrix.numel() * matrix.itemsize)
            for each in located
            for matrix in each.matrices[: each.routed]
        )
        self._matrices = {
            name: matrix for name, matrix in _matrices(model) if not _overlaps(matrix, experts)
        }
        self._lines: dict[int, dict[int, list[tuple[str, int]]]] = {}

    def as_it_is(self, tensor: TensorReader) -> LocatedTensor | str | None:
        """The matrix of the same shape and values; why there is none, or None if it may be there in
        another form."""
        if len(tensor.shape) > 2:
            return None
        rows, columns = tensor.shape
        ends = {row: tensor.read(slice(row, row + 1))[0] for row in {0, rows // 2, rows - 1}}
        found = [
            (name, view)
            for name, matrix in self._matrices.items()
            for view in (matrix, matrix.T)[: 1 if rows == columns else 2]
            if tuple(view.shape) == tensor.shape
            and all(_same(view[row], values) for row, values in ends.items())
        ]
        if not found:
            return None
        if len(found) > 1:
            likeness = [_common_end(tensor.name, name) for name, _ in found]
            best = max(likeness)
            if likeness.count(best) > 1:
                return EQUAL
            found = [found[likeness.index(best)]]
        name, view = found[0]
        if not all(_same(view[part], values) for part, values in _slabs(tensor)):
            return None
        piece = Piece(slice(0, rows), view, self._matrices[name])
        return LocatedTensor(tensor.name, (rows, columns), (piece,))

    def row_by_row(self, tensor: TensorReader) -> LocatedTensor | str:
        """The rows of the model's matrices that are the tensor's; or why there are none."""
        rows, columns = _rows_and_columns(tensor)
        lines = self._lines_of(columns)
        places: dict[str, list[tuple[int, int]]] = {}
        for part, values in _slabs(tensor):
            marks = {
                dtype: row_marks(values.to(dtype)).tolist()
                for dtype in {self._matrices[name].dtype for name in self._names_of(columns)}
            }
            for number in range(part.stop - part.start):
                found = [
                    place
                    for dtype, each in marks.items()
                    for place in lines.get(each[number], [])
                    if self._matrices[place[0]].dtype is dtype
                ]
                if len(found) != 1:
                    return UNLIKE if found else ABSENT
                name, line = found[0]
                places.setdefault(name, []).append((part.start + number, line))
        pieces = []
        for name, pairs in places.items():
            own, theirs = (_steps([pair[side] for pair in pairs]) for side in (0, 1))
            if own is None or theirs is None:
                return UNLIKE
            matrix = self._matrices[name]
            pieces.append(Piece(own, _by_lines(matrix, columns)[theirs], matrix))
        stacked = 1 if len(tensor.shape) == 2 else tensor.shape[0]
        return LocatedTensor(tensor.name, (rows, columns), tuple(pieces), stacked)

    def _names_of(self, width: int) -> list[str]:
        return [name for name, matrix in self._matrices.items() if width in matrix.shape]

    def _lines_of(self, width: int) -> dict[int, list[tuple[str, int]]]:
        """Mark -> the matrices and their lines of this width that have it."""
        if width not in self._lines:
            lines: dict[int, list[tuple[str, int]]] = {}
            for name in self._names_of(width):
                view = _by_lines(self._matrices[name], width)
                for line, mark in enumerate(row_marks(view).tolist()):
                    lines.setdefault(mark, []).append((name, line))
            self._lines[width] = lines
        return self._lines[width]


def _matrices(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of a model, also each of a parameter `[matrices, n, m]`."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            yield name, parameter.detach()
        elif parameter.dim() == 3 and parameter.shape[1] > 1:
            for number, matrix in enumerate(parameter.detach()):
                yield f"{name}.{number}", matrix


def _rows_and_columns(tensor: TensorReader) -> tuple[int, int]:
    """Of a tensor as one matrix: the last axis is columns, all others are rows."""
    return math.prod(tensor.shape[:-1]), tensor.shape[-1]


def _by_lines(matrix: torch.Tensor, width: int) -> torch.Tensor:
    """`[lines, width]`"""
    return matrix if matrix.shape[1] == width else matrix.T


def _steps(numbers: list[int]) -> slice | None:
    """Rising numbers at equal distances as a slice; None if they are not such."""
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    wanted = range(numbers[0], numbers[0] + step * len(numbers), max(step, 1))
    return slice(numbers[0], numbers[-1] + 1, step) if numbers == list(wanted) else None


def _same(in_model: torch.Tensor, on_disk: torch.Tensor) -> bool:
    return torch.equal(in_model.cpu(), on_disk.to(in_model.dtype))


def _slabs(tensor: TensorReader) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of a tensor as one matrix."""
    rows, columns = _rows_and_columns(tensor)
    first = tensor.shape[0]
    each = rows // first
    count = max(SLAB // (columns * each), 1)
    for begin in range(0, first, count):
        end = min(begin + count, first)
        values = tensor.read(slice(begin, end))
        yield slice(begin * each, end * each), values.reshape(-1, columns)


def _overlaps(matrix: torch.Tensor, regions: list[tuple[int, int]]) -> bool:
    """regions: first address and that behind the last, in order, none within another."""
    start = matrix.data_ptr()
    number = bisect_left(regions, (start + matrix.numel() * matrix.itemsize,)) - 1
    return number >= 0 and start < regions[number][1]


def _common_end(name: str, other: str) -> int:
    """How many of the last words of two names are the same."""
    count = 0
    for one, two in zip(reversed(name.split(".")), reversed(other.split(".")), strict=False):
        if one != two:
            break
        count += 1
    return count
