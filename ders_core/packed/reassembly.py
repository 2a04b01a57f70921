"""Which original tensors a packed checkpoint's groups lay in, and how they are put together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ders_core.checkpoint.axes import EXPERT, PART
from ders_core.checkpoint.matrix import Slot
from ders_core.checkpoint.quantized import SCHEMES, QuantizedWeight, Scheme
from ders_core.errors import CheckpointError
from ders_core.files.spec import DTYPES, TensorSpec
from ders_core.packed.manifest import PackedGroup


@dataclass(frozen=True)
class Member:
    """One expert's weight or bias, and its place in an original tensor."""

    group: PackedGroup
    expert: int
    bias: bool
    slot: Slot


@dataclass
class Assembled:
    """An original tensor that is put together from packed ones.

    spec: on disk. numbers: what it means, the same but where the source holds codes.
    """

    spec: TensorSpec
    numbers: TensorSpec
    members: list[Member] = field(default_factory=list)
    coded: QuantizedWeight | None = None

    @property
    def pieces(self) -> int:
        """Experts that lie one after another, each a piece; 1 where they do not."""
        slot = self.members[0].slot
        return slot.sizes[EXPERT] if slot.axes.order[0] == EXPERT else 1

    @cached_property
    def by_piece(self) -> list[list[Member]]:
        """What each piece is made of."""
        if self.pieces == 1:
            return [self.members]
        found: list[list[Member]] = [[] for _ in range(self.pieces)]
        for member in self.members:
            found[member.slot.expert].append(member)
        return found


def assemble(groups: Iterable[PackedGroup], manifest: Path) -> dict[str, Assembled]:
    """The original tensors that the groups' experts lay in, by name.

    Raises CheckpointError unless each is covered just once. manifest: the file to blame.
    """
    found: dict[str, Assembled] = {}
    for group in groups:
        _, out, width = group.shape
        for bias, sources in ((False, group.experts), (True, group.biases)):
            for expert, source in enumerate(sources):
                slot = source.slot((out, 1 if bias else width))
                if slot.axes.is_bias != bias:
                    raise CheckpointError(
                        f"{manifest}: {source.tensor!r} contradicts itself; copy the directory "
                        "again"
                    )
                numbers = TensorSpec(DTYPES[group.dtype], slot.axes.shape(slot.sizes))
                coded = scheme_class(group.stored) if group.stored and not bias else None
                spec = coded.codes(numbers.shape) if coded else numbers
                own = found.setdefault(source.tensor, Assembled(spec, numbers))
                own.members.append(Member(group, expert, bias, slot))
    for name, assembled in found.items():
        if not _is_whole(assembled):
            raise CheckpointError(
                f"{manifest}: the parts of {name!r} do not make it whole; copy the directory again"
            )
    return found


def _is_whole(assembled: Assembled) -> bool:
    """Whether every expert and every part is there once."""
    slots = [member.slot for member in assembled.members]
    first = slots[0]
    places = {(slot.expert, slot.part) for slot in slots}
    count = math.prod(first.sizes.get(axis, 1) for axis in (EXPERT, PART))
    same = all(slot.sizes == first.sizes and slot.axes == first.axes for slot in slots)
    return same and len(slots) == len(places) == count


def scheme_class(name: str) -> type[Scheme]:
    """Raises CheckpointError for a scheme that is not known here."""
    found = next((scheme for scheme in SCHEMES if scheme.name == name), None)
    if found is None:
        raise CheckpointError(
            f"the manifest names the scheme {name!r}, which is unknown here; install the version "
            "of ders-studio that wrote it"
        )
    return found
