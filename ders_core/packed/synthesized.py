"""Any elements of an original tensor that is put together from packed experts."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from ders_core.checkpoint.matrix import Slot
from ders_core.errors import CheckpointError, CodecError
from ders_core.files.dtype import Dtype
from ders_core.files.numbers import WORDS
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import FileTensor, read_elements, read_rows, read_span
from ders_core.files.writer import tensor_bytes
from ders_core.later import np, torch
from ders_core.packed.assembler import Assembler
from ders_core.packed.names import MANIFEST
from ders_core.packed.reassembly import Member

KEPT_BYTES = 1 << 29
"""Of synthesized values, for all experts of a group together."""


@dataclass(frozen=True)
class SynthesizedTensor:
    """An original tensor that is computed when it is read (a `TensorReader`)."""

    name: str
    spec: TensorSpec
    synthesis: Synthesis = field(compare=False, repr=False)

    @property
    def dtype(self) -> Dtype:
        return self.spec.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def nbytes(self) -> int:
        return self.spec.nbytes

    @property
    def file_name(self) -> str:
        """The manifest, which describes it."""
        return MANIFEST

    @property
    def is_remote(self) -> bool:
        return False

    def read(self, rows: slice | None = None) -> torch.Tensor:
        return read_rows(self, rows)

    def elements(self, first: int, count: int) -> torch.Tensor:
        return read_elements(self, first, count)

    def read_into(self, out: torch.Tensor, first: int) -> None:
        self.synthesis.read_into(self.name, out.view(-1), first)

    def strided(
        self, offset: int, shape: tuple[int, int], strides: tuple[int, int]
    ) -> torch.Tensor:
        window = self.synthesis.window(self.name, offset, shape, strides)
        if window is None:
            return read_span(self, offset, shape, strides)
        return window.clone(memory_format=torch.contiguous_format)

    def words(self, offset: int, shape: tuple[int, int], strides: tuple[int, int]) -> np.ndarray:
        values = self.strided(offset, shape, strides)
        return values.view(torch.uint8).numpy().view(WORDS[self.dtype.itemsize])

    def raw(self) -> Iterator[bytes]:
        for piece in self.synthesis.pieces(self.name):
            yield from map(bytes, tensor_bytes(piece))

    def sources(self) -> tuple[FileTensor, ...]:
        return self.synthesis.sources(self.name)


class Synthesis:
    """Reads any elements of the assembled tensors of a packed checkpoint.

    To read a few elements, an expert's whole matrix is made. The part that begins with them
    is kept, up to the expert's share of `KEPT_BYTES`. So a reader that takes a few rows of every
    expert at a time, as `slabs` does, has each expert made once if the group fits, else once for
    each `KEPT_BYTES` of the group.
    """

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler
        self._kept: OrderedDict[tuple[str, int], tuple[int, torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()  # slabs are read ahead in a thread

    @property
    def kept_bytes(self) -> int:
        """Bytes of the values that are kept now."""
        return sum(part.nbytes for _, part in self._kept.values())

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """As `Assembler.pieces`, on the CPU."""
        return self._assembler.pieces(name)

    def sources(self, name: str) -> tuple[FileTensor, ...]:
        """All parts of the groups whose experts are in the tensor."""
        members = self._assembler.tensors[name].members
        groups = {member.stack.prefix: member.stack for member in members}
        parts = self._assembler.matrices.parts
        return tuple(tensor for group in groups.values() for tensor in parts(group))

    def read_into(self, name: str, out: torch.Tensor, first: int) -> None:
        """Fill `[n]` with the tensor's elements from the `first` on. Raises CheckpointError."""
        count = len(out)
        window = self.window(name, first, (1, count), (count, 1))
        if window is not None:
            out.copy_(window[0])
            return
        tensor = self._assembler.tensors[name]
        size, done = tensor.spec.elements // tensor.pieces, 0
        while done < count:
            number, begin = divmod(first + done, size)
            end = min(size, begin + count - done)
            out[done : done + end - begin].copy_(self._piece(name, number, begin, end))
            done += end - begin

    def window(
        self, name: str, offset: int, shape: tuple[int, int], strides: tuple[int, int]
    ) -> torch.Tensor | None:
        """A matrix of the tensor's elements as `TensorReader.strided` gives it, not to be written
        to. Raises CheckpointError.

        None if it is not part of one expert's matrix, or if codes are stored: to make these, all
        values of an expert are needed.
        """
        tensor = self._assembler.tensors[name]
        if tensor.is_coded:
            return None
        if not math.prod(shape):
            return torch.empty(shape, dtype=tensor.spec.dtype.torch)
        if strides[0] < strides[1]:
            turned = self.window(name, offset, shape[::-1], strides[::-1])
            return None if turned is None else turned.T
        for member in tensor.by_piece[offset * tensor.pieces // tensor.spec.elements]:
            lines = _Lines.of(member.slot)
            place = lines.find(offset, shape, strides)
            if place is not None:
                begin, end, column = place
                make = partial(self._matrix, member, lines.turned)
                key = (f"{member.stack.prefix}{'.bias' if member.bias else ''}", member.number)
                part = self._part(key, member.stack.stacked[0], begin, end, make)
                return part.view(shape[0], -1)[:, column : column + shape[1]]
        return None

    def _matrix(self, member: Member, turned: bool) -> torch.Tensor:
        """All elements `[n]` of a member's matrix, line by line."""
        matrix = self._assembler.matrix(member)
        return (matrix.T if turned else matrix).reshape(-1)

    def _piece(self, name: str, number: int, begin: int, end: int) -> torch.Tensor:
        experts = self._assembler.tensors[name].members[0].stack.stacked[0]
        make = partial(self._assembler.piece, name, number)
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
            values = make()
        except CodecError as error:
            raise CheckpointError(str(error)) from error
        share = KEPT_BYTES // experts // values.itemsize
        if end - begin <= share:
            fits = len(values) <= share
            with self._lock:
                self._kept[key] = (
                    (0, values) if fits else (begin, values[begin : begin + share].clone())
                )
                self._kept.move_to_end(key)
                while self.kept_bytes > KEPT_BYTES:
                    self._kept.popitem(last=False)
        return values[begin:end]


@dataclass(frozen=True)
class _Lines:
    """A slot's matrix as lines along its faster axis. turned: whether these are its columns.

    offset: elements before the first line. count, width: lines, and elements of a line. step,
    apart: elements between the beginnings of two lines, and between neighbours in a line.
    """

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
        """The place of a window of the tensor's elements in these lines, or None if it is not
        within them: (begin, end, column).

        Elements begin … end of the lines, one line after another, make as many rows as the window
        has; its values begin at `column` of each.
        """
        lead, (rows, columns) = offset - self.offset, shape
        if lead < 0:
            return None
        gapless = self.step == self.width and self.apart == 1
        straight = (rows == 1 or strides[0] == columns) and (columns == 1 or strides[1] == 1)
        end = lead + rows * columns
        if gapless and straight and end <= self.count * self.width:
            return lead, end, 0
        alike = rows == 1 or strides[0] == self.step
        alike = alike and (columns == 1 or strides[1] == self.apart)
        row, rest = divmod(lead, self.step)
        column, between = divmod(rest, self.apart)
        if not alike or between or row + rows > self.count or column + columns > self.width:
            return None
        return row * self.width, (row + rows) * self.width, column
