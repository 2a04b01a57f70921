"""Tensors outside the experts: what each is, and its matrices as a stack."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

from ders_core.checkpoint.axes import EXPERT, IN, OUT, Axes
from ders_core.checkpoint.groups import Block
from ders_core.checkpoint.kinds import KINDS as KINDS
from ders_core.checkpoint.kinds import SMALL, kind_by_words
from ders_core.checkpoint.kinds import Kind as Kind
from ders_core.checkpoint.matrix import Matrix, Slot
from ders_core.checkpoint.stacks import MatrixStack
from ders_core.files.dtype import Dtype
from ders_core.files.tensor import TensorReader

FLOATS = (Dtype.BF16, Dtype.F16, Dtype.F32)
"""The dtypes of tensors that a codec may have."""

MOST_PIECES = 4096

STACKED = Axes((("expert",), ("out",), ("in",)))


@dataclass(frozen=True)
class OtherTensor(MatrixStack):
    """A tensor that holds no routed expert, as one matrix or more: `[pieces, rows, in]`.

    layer: counted as MoE layers are; None outside of the layers.
    """

    info: TensorReader
    kind: Kind
    layer: int | None
    pieces: tuple[Matrix, ...]

    one_of_many: ClassVar[str] = "piece"

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.pieces

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def prefix(self) -> str:
        return f"{self.name}.ders"

    @property
    def title(self) -> str:
        return self.name

    @property
    def key(self) -> str:
        return self.name

    def cut(self, most: int) -> OtherTensor:
        """The tensor in pieces of at most so many values (see `pieces_of`)."""
        return self.cut_into(pieces_of(self.info.shape, most))

    def cut_into(self, pieces: int) -> OtherTensor:
        """The tensor as so many matrices of as many rows, one after another."""
        sizes = sizes_of(self.info.shape, pieces)
        slots = (Slot(STACKED, sizes, piece) for piece in range(pieces))
        return replace(self, pieces=tuple(Matrix(self.info, slot) for slot in slots))

    def of_rows(self, pieces: Sequence[slice]) -> OtherTensor:
        return replace(self, pieces=self.rows_of_matrices(pieces))


@dataclass(frozen=True)
class Surroundings:
    """What is known of a checkpoint's tensors outside the experts, by their names.

    routers: the modules of the blocks' routers. shared, ffns: always-on experts' tensors, and those
    of dense FFNs. scopes: what names of a stack's layers begin with -> what is added to the number
    after it. stated: the layout's own patterns of names -> kinds, which count before all else.
    """

    routers: frozenset[str]
    shared: frozenset[str]
    ffns: frozenset[str]
    scopes: Mapping[str, int]
    stated: Mapping[str, Kind]

    @classmethod
    def of(
        cls,
        blocks: Sequence[Block],
        shared: Sequence[str],
        ffns: Sequence[str],
        stated: Mapping[str, Kind],
    ) -> Surroundings:
        scopes: dict[str, int] = {}
        for block in blocks:
            match = re.search(rf"(?<![^.]){block.layer}(?![^.])", block.name)
            if match is not None:
                scopes.setdefault(block.name[: match.start()], block.index - block.layer)
        routers = frozenset(_module(block.router) for block in blocks if block.router)
        return cls(routers, frozenset(shared), frozenset(ffns), scopes, stated)

    def layer(self, name: str) -> int | None:
        """The layer that a tensor belongs to."""
        for scope, added in self.scopes.items():
            match = re.match(r"(\d{1,9})(?![^.])", name[len(scope) :])
            if name.startswith(scope) and match is not None:
                return int(match[1]) + added
        return None

    def kind(self, name: str, shape: tuple[int, ...]) -> Kind:
        """What a tensor is. One of one dimension is small, whatever its neighbours are."""
        is_vector = math.prod(shape) == max(shape, default=0)
        said = (kind for pattern, kind in self.stated.items() if fnmatchcase(name, pattern))
        stated = next(said, None)
        if stated is not None and (stated in SMALL or not is_vector):
            return stated
        if _module(name) in self.routers:
            return "router"
        if name in self.shared:
            return "shared"
        word = kind_by_words(name)
        if is_vector:
            return "norm" if word == "norm" else "vector"
        return "ffn" if name in self.ffns else word


def other_tensor(info: TensorReader, surroundings: Surroundings) -> OtherTensor:
    """A tensor as one matrix: the last dimension is `in`, all others are rows."""
    kind, layer = surroundings.kind(info.name, info.shape), surroundings.layer(info.name)
    return OtherTensor(info, kind, layer, ()).cut_into(1)


def sizes_of(shape: tuple[int, ...], pieces: int) -> dict[str, int]:
    """The axes of a tensor's matrices."""
    *before, width = shape or (1,)
    return {EXPERT: pieces, OUT: math.prod(before) // pieces, IN: width}


def pieces_of(shape: tuple[int, ...], most: int) -> int:
    """The least number of pieces of at most `most` values that have the same number of rows; 1, if
    more than `MOST_PIECES` were needed."""
    rows = math.prod(shape[:-1])
    least = -(-math.prod(shape) // most)
    counts = range(max(least, 1), min(rows, MOST_PIECES) + 1)
    return next((count for count in counts if rows % count == 0), 1)


def can_be_coded(info: TensorReader) -> bool:
    """Whether a codec can take the tensor: plain numbers, at least one."""
    return info.dtype in FLOATS and math.prod(info.shape) > 0


def _module(name: str) -> str:
    """What a tensor's name begins with, without its last part."""
    return name.rpartition(".")[0]
