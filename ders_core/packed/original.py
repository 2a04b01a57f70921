"""The original that a packed checkpoint stands for, as a store like any other.

`Checkpoint` opens it where it meets a packed directory (`open_original`), so that whatever works on
a checkpoint works on a packed one: names, shapes and files are the original's, experts' weights are
synthesized when they are read, and everything else is read where it lies.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch

from ders_core.checkpoint.matrix import Slot
from ders_core.errors import CheckpointError, CodecError
from ders_core.files.header import TensorInfo
from ders_core.files.store import TensorStore
from ders_core.files.writer import tensor_bytes
from ders_core.packed.manifest import MANIFEST
from ders_core.packed.reader import PackedCheckpoint, checksum_problems
from ders_core.packed.reassembly import Member

KEPT_BYTES = 1 << 29
"""Of synthesized values, for all experts of a group together."""


def open_original(path: str | Path) -> OriginalStore:
    """The original's tensors, out of a packed directory. Reads headers and the manifest.

    Raises CheckpointError if it is damaged, or does not lie on this machine.
    """
    packed = PackedCheckpoint(path)
    source, synthesis = packed.manifest.source, Synthesis(packed)
    return OriginalStore(
        packed.path,
        packed.config,
        {name: synthesis.info(name) for name in packed.names()},
        source.files,
        source.metadata,
        source.index,
        source.bytes_total,
        packed,
    )


@dataclass(frozen=True)
class OriginalStore(TensorStore):
    """`files`, `metadata` and `bytes_total` are the original's, as the manifest tells them."""

    packed: PackedCheckpoint

    @property
    def config_text(self) -> str:
        return self.packed.config_text

    @property
    def packed_bytes(self) -> int:
        return self.packed.bytes_total

    @cached_property
    def identity(self) -> str:
        """The packed store's own: what is read here is not quite what was packed."""
        return self.packed.store.identity

    def side_files(self) -> list[Path]:
        return [file for file in self.packed.store.side_files() if file.name != MANIFEST]

    def check(self, step: Callable[[int, str], None]) -> None:
        problems = checksum_problems(self.packed, step)
        if problems:
            raise CheckpointError(f"{self.path}: {problems[0]}; copy the directory again")


@dataclass(frozen=True)
class SynthesizedTensor(TensorInfo):
    """An original tensor that does not lie on disk: `file` is the manifest that tells of it."""

    synthesis: Synthesis = field(compare=False, repr=False)

    def read_into(self, out: torch.Tensor, first: int) -> None:
        self.synthesis.read_into(self.name, out.view(-1), first)

    def strided(
        self, offset: int, shape: tuple[int, int], strides: tuple[int, int]
    ) -> torch.Tensor:
        found = self.synthesis.window(self.name, offset, shape, strides)
        if found is None:
            return self._spanned(offset, shape, strides)
        return found.clone(memory_format=torch.contiguous_format)

    def sources(self) -> tuple[TensorInfo, ...]:
        return self.synthesis.sources(self.name)

    def raw(self) -> Iterator[bytes]:
        for piece in self.synthesis.packed.pieces(self.name):
            yield from map(bytes, tensor_bytes(piece))


class Synthesis:
    """Reads any elements of a packed checkpoint's original tensors.

    An expert's whole matrix is made to read a part of it, and the part that begins there and is its
    share of `KEPT_BYTES` is kept: who reads a group a few rows of every expert at a time, as slabs
    do, has each expert made once if the group fits, else once for every so many bytes of the group.
    """

    def __init__(self, packed: PackedCheckpoint) -> None:
        self.packed = packed
        self._kept: OrderedDict[tuple[str, int], tuple[int, torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()  # slabs are read ahead in a thread

    def info(self, name: str) -> TensorInfo:
        """Where an original tensor is read."""
        if name not in self.packed.assembled:
            return self.packed.store.tensors[name]
        spec = self.packed.spec(name)
        manifest = self.packed.path / MANIFEST
        return SynthesizedTensor(name, spec.dtype, spec.shape, manifest, 0, spec.nbytes, self)

    def sources(self, name: str) -> tuple[TensorInfo, ...]:
        """The tensors on disk out of which one is made: those of all experts in its groups."""
        groups = {own.group.prefix: own.group for own in self.packed.assembled[name].members}
        return tuple(info for group in groups.values() for info in self.packed.parts(group))

    def read_into(self, name: str, out: torch.Tensor, first: int) -> None:
        """Fill `[n]` with the elements of an original tensor from the `first` on."""
        count = len(out)
        found = self.window(name, first, (1, count), (count, 1))
        if found is not None:
            out.copy_(found[0])
            return
        own = self.packed.assembled[name]
        size, done = own.spec.elements // own.pieces, 0
        while done < count:
            number, begin = divmod(first + done, size)
            end = min(size, begin + count - done)
            out[done : done + end - begin].copy_(self._piece(name, number, begin, end))
            done += end - begin

    def window(
        self, name: str, offset: int, shape: tuple[int, int], strides: tuple[int, int]
    ) -> torch.Tensor | None:
        """What lies so among an original tensor's elements, not to be written to. None if it is not
        all of one expert's matrix, or if codes are stored: those need all that an expert has."""
        own = self.packed.assembled[name]
        if own.coded is not None:
            return None
        if not math.prod(shape):
            return torch.empty(shape, dtype=own.spec.dtype)
        if strides[0] < strides[1]:
            found = self.window(name, offset, shape[::-1], strides[::-1])
            return None if found is None else found.T
        for member in own.by_piece[offset * own.pieces // own.spec.elements]:
            lines = _Lines.of(member.slot)
            place = lines.find(offset, shape, strides)
            if place is not None:
                begin, end, column = place
                make = partial(self._matrix, member, lines.turned)
                key = (f"{member.group.prefix}{'.bias' if member.bias else ''}", member.expert)
                found = self._part(key, member.group.shape[0], begin, end, make)
                return found.view(shape[0], -1)[:, column : column + shape[1]]
        return None

    def _matrix(self, member: Member, turned: bool) -> torch.Tensor:
        """All elements `[n]` of a member's matrix, line by line."""
        matrix = self.packed.member(member)
        return (matrix.T if turned else matrix).reshape(-1)

    def _piece(self, name: str, number: int, begin: int, end: int) -> torch.Tensor:
        own = self.packed.assembled[name]
        experts = own.members[0].group.shape[0]
        make = partial(self.packed.piece, own, number)
        return self._part((name, number), experts, begin, end, make)

    def _part(
        self,
        key: tuple[str, int],
        experts: int,
        begin: int,
        end: int,
        make: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """Elements `begin` to `end` of what `make` gives, `[n]`; kept as the class says."""
        with self._lock:
            first, kept = self._kept.get(key, (0, None))
            if kept is not None and first <= begin and end <= first + len(kept):
                self._kept.move_to_end(key)
                return kept[begin - first : end - first]
        try:
            whole = make()
        except CodecError as error:
            raise CheckpointError(
                f"{self.packed.path}: {key[0]}, expert {key[1]}: {error}"
            ) from error
        share = KEPT_BYTES // experts // whole.itemsize
        if end - begin <= share:
            fits = len(whole) <= share
            own = (0, whole) if fits else (begin, whole[begin : begin + share].clone())
            with self._lock:
                self._kept[key] = own
                self._kept.move_to_end(key)
                while sum(kept.nbytes for _, kept in self._kept.values()) > KEPT_BYTES:
                    self._kept.popitem(last=False)
        return whole[begin:end]


@dataclass(frozen=True)
class _Lines:
    """A slot's matrix line by line, as it lies: `step` elements between the beginnings of two lines
    of `width`, `apart` between neighbours. turned: whether the lines are its columns."""

    offset: int
    count: int
    width: int
    step: int
    apart: int
    turned: bool

    @classmethod
    def of(cls, slot: Slot) -> _Lines:
        shape, strides = slot.shape, slot.strides
        turned = strides[0] < strides[1]
        if turned:
            shape, strides = shape[::-1], strides[::-1]
        return cls(slot.offset, *shape, *strides, turned)

    def find(
        self, offset: int, shape: tuple[int, int], strides: tuple[int, int]
    ) -> tuple[int, int, int] | None:
        """Where a window into the tensor's elements lies in these lines: (begin, end) of the lines'
        own elements, which are as many rows as the window's, and the window's first column."""
        lead, (rows, columns) = offset - self.offset, shape
        if lead < 0:
            return None
        whole = self.step == self.width and self.apart == 1
        straight = (rows == 1 or strides[0] == columns) and (columns == 1 or strides[1] == 1)
        end = lead + rows * columns
        if whole and straight and end <= self.count * self.width:
            return lead, end, 0
        alike = rows == 1 or strides[0] == self.step
        alike = alike and (columns == 1 or strides[1] == self.apart)
        row, rest = divmod(lead, self.step)
        column, between = divmod(rest, self.apart)
        if not alike or between or row + rows > self.count or column + columns > self.width:
            return None
        return row * self.width, (row + rows) * self.width, column
