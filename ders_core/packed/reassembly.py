"""Which tensors of the original hold the matrices of packed stacks, and at which places."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ders_core.checkpoint.axes import EXPERT, PART
from ders_core.checkpoint.matrix import Slot
from ders_core.checkpoint.quantized import SCHEMES, Scheme
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.packed.stacks import PackedStack, Place


@dataclass(frozen=True)
class Member:
    """One matrix or its bias, and its place in an original tensor."""

    stack: PackedStack
    number: int
    bias: bool
    slot: Slot


@dataclass(frozen=True)
class Assembled:
    """An original tensor that is put together from the members of packed stacks.

    spec: on disk. numbers: of its values; they differ from `spec` where the original holds codes.
    """

    spec: TensorSpec
    numbers: TensorSpec
    members: list[Member] = field(default_factory=list)

    @property
    def is_coded(self) -> bool:
        """Whether the original holds codes in it."""
        return self.spec != self.numbers

    @property
    def pieces(self) -> int:
        """The number of equal parts that can be made one by one: the experts, if they come one
        after another, else 1."""
        slot = self.members[0].slot
        return slot.sizes[EXPERT] if slot.axes.order[0] == EXPERT else 1

    @cached_property
    def by_piece(self) -> list[list[Member]]:
        """The members of each piece."""
        if self.pieces == 1:
            return [self.members]
        by_piece: list[list[Member]] = [[] for _ in range(self.pieces)]
        for member in self.members:
            by_piece[member.slot.expert].append(member)
        return by_piece


def assemble(stacks: Iterable[PackedStack], manifest: Path) -> dict[str, Assembled]:
    """The original tensors that hold the stacks' matrices, by name.

    manifest: the file that an error names. Raises CheckpointError unless the stacks cover every
    such tensor exactly once.
    """
    tensors: dict[str, Assembled] = {}
    for stack in stacks:
        dtype = Dtype[stack.dtype]
        for place in _places(stack, manifest):
            numbers = TensorSpec(dtype, place.shape)
            scheme = find_scheme(stack.stored) if stack.stored and not place.bias else None
            spec = scheme.codes(numbers.shape) if scheme else numbers
            assembled = tensors.setdefault(place.tensor, Assembled(spec, numbers))
            assembled.members.append(Member(stack, place.number, place.bias, place.slot))
    for name, assembled in tensors.items():
        if not _is_complete(assembled):
            raise CheckpointError(
                f"{manifest}: the parts of {name!r} do not make it whole; copy the directory again"
            )
    return tensors


def _places(stack: PackedStack, manifest: Path) -> Iterator[Place]:
    try:
        yield from stack.places()
    except CheckpointError as error:
        raise CheckpointError(f"{manifest}: {error}; copy the directory again") from error


def _is_complete(assembled: Assembled) -> bool:
    """Whether every expert and every part is there once."""
    slots = [member.slot for member in assembled.members]
    first = slots[0]
    places = {(slot.expert, slot.part) for slot in slots}
    count = math.prod(first.sizes.get(axis, 1) for axis in (EXPERT, PART))
    alike = all(slot.sizes == first.sizes and slot.axes == first.axes for slot in slots)
    return alike and len(slots) == len(places) == count


def find_scheme(name: str) -> type[Scheme]:
    """The scheme of that name. Raises CheckpointError if it is unknown here."""
    scheme = next((scheme for scheme in SCHEMES if scheme.name == name), None)
    if scheme is None:
        raise CheckpointError(
            f"the manifest names the scheme {name!r}, which is unknown here; install the version "
            "of ders-studio that wrote it"
        )
    return scheme
