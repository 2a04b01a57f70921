"""Read from a packed checkpoint what is to be trained, and join it with its places in the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ders_core.checkpoint import Checkpoint
from ders_core.codecs import EncodeContext
from ders_core.codecs.group import GroupCodec, Lengths
from ders_core.compute.progress import Tell, untold
from ders_core.files.dtype import Dtype
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.stacks import PackedGroup, PackedStack, PackedTensor
from ders_core.repair.places import BiasSlot, Located, Places
from ders_core.repair.settings import BASES, BIASES, CARRIED
from ders_core.repair.tuned import (
    Base,
    CodedBase,
    FixedBase,
    Leaf,
    PartPlaces,
    PlainBase,
    Tuned,
    TunedDelta,
    TunedMatrix,
    TunedStack,
    TunedTensor,
)


@dataclass(frozen=True)
class ReadStack:
    """A coded stack. deltas: None for a matrix that does not follow from its base and small
    parts."""

    stack: PackedStack
    deltas: Sequence[TunedDelta | None]
    bases: Sequence[Base]

    @property
    def leaves(self) -> list[Leaf]:
        deltas = [delta for delta in self.deltas if delta is not None]
        coded = [base.delta for base in self.bases if isinstance(base, CodedBase)]
        plain = [base.leaf for base in self.bases if isinstance(base, PlainBase)]
        return [leaf for delta in (*deltas, *coded) for leaf in delta.leaves.values()] + plain


@dataclass
class Collected:
    """What is to be trained, before it is known where the model keeps it."""

    groups: list[ReadStack] = field(default_factory=list)
    others: list[ReadStack] = field(default_factory=list)
    biases: dict[str, PlainBase] = field(default_factory=dict)
    """Experts' biases `[experts, out]`, by the prefix of their group."""
    slots: dict[str, list[BiasSlot]] = field(default_factory=dict)
    """Where the original holds them, expert after expert."""
    plain: dict[str, PlainBase] = field(default_factory=dict)
    """Carried tensors by name."""
    matrices: set[str] = field(default_factory=set)
    """Those of them that are looked for as matrices are: attention, dense FFNs and the like."""

    @property
    def leaves(self) -> list[Leaf]:
        stacks = [leaf for each in (*self.groups, *self.others) for leaf in each.leaves]
        plain = (*self.biases.values(), *self.plain.values())
        return stacks + [each.leaf for each in plain]

    @property
    def layers(self) -> set[int]:
        return {each.stack.layer for each in self.groups if isinstance(each.stack, PackedGroup)}

    @property
    def coded(self) -> set[str]:
        """The coded tensors outside the experts."""
        return {each.stack.name for each in self.others if isinstance(each.stack, PackedTensor)}


def collect(
    packed: PackedCheckpoint,
    original: Checkpoint,
    words: Collection[str],
    device: torch.device,
    tell: Tell = untold,
) -> Collected:
    """original: what was packed, which knows the kinds of tensors. words: of
    `settings.TRAINABLE`. tell: called with a message before each stack. Raises CheckpointError and
    CodecError for damaged parts."""
    collected = Collected()
    for stack in packed.manifest.stacks:
        tell(f"reading {stack.title}")
        read = _read_stack(packed, stack, words, device)
        if read is not None and read.leaves:
            (collected.groups if isinstance(stack, PackedGroup) else collected.others).append(read)
    if BIASES in words:
        for group in packed.manifest.groups:
            if group.has_biases and not packed.matrices.is_lossless(group):
                name = f"{group.prefix}.bias"
                values = packed.store.tensors[name].read().to(device)
                leaf = Leaf(f"{group.title}: biases", BIASES, values)
                collected.biases[group.prefix] = PlainBase(leaf, name)
                slots = [(each.tensor, each.slot) for each in group.places() if each.bias]
                collected.slots[group.prefix] = slots
    kinds = {CARRIED[word]: word for word in words if word in CARRIED}
    carried = packed.original.carried()
    for name, tensor in original.others.items():
        word = kinds.get(tensor.kind)
        if word is not None and name in carried:
            leaf = Leaf(name, word, carried[name].read().to(device))
            collected.plain[name] = PlainBase(leaf, name)
            if len(carried[name].shape) == 2 and tensor.kind not in ("norm", "router", "vector"):
                collected.matrices.add(name)
    return collected


def _read_stack(
    packed: PackedCheckpoint, stack: PackedStack, words: Collection[str], device: torch.device
) -> ReadStack | None:
    codec, form = stack.group_codec(), stack.base_form()
    if codec.keeps:
        return None
    count, *_ = stack.stacked
    recipe_seed = int(packed.manifest.recipe.get("seed", 0))
    deltas = [
        _read_delta(
            packed,
            stack,
            "",
            codec,
            number,
            stack.lengths,
            stack.seed(recipe_seed, number),
            words,
            device,
        )
        for number in range(count)
    ]
    whichs = range(1 + max(stack.base_of(number) for number in range(count)))
    first = {stack.base_of(number): number for number in reversed(range(count))}
    bases: list[Base] = []
    for which in whichs:
        base: Base | None = None
        if form is not None and form.is_coded:
            delta = _read_delta(
                packed,
                stack,
                "base.",
                form.stacked,
                which,
                form.lengths or {},
                stack.base_seed(recipe_seed, which),
                words,
                device,
            )
            base = delta and CodedBase(delta, Dtype[stack.dtype].torch)
        elif form is not None and BASES in words and None not in deltas:
            base = _plain_base(packed, stack, form.count, which, device)
        if base is None or None in deltas:
            values = packed.matrices.base(stack, first[which])
            assert values is not None
            base = FixedBase(values.to(device))
        bases.append(base)
    return ReadStack(stack, deltas, bases)


def _plain_base(
    packed: PackedCheckpoint,
    stack: PackedStack,
    count: int | None,
    which: int,
    device: torch.device,
) -> PlainBase:
    name = f"{stack.prefix}.base"
    rows = None if count is None else slice(which, which + 1)
    values = packed.store.tensors[name].read(rows)
    values = values if rows is None else values[0]
    title = f"{stack.title}: base {which}"
    return PlainBase(Leaf(title, BASES, values.to(device)), name, rows)


def _read_delta(
    packed: PackedCheckpoint,
    stack: PackedStack,
    head: str,
    codec: GroupCodec,
    number: int,
    lengths: Lengths,
    seed: int,
    words: Collection[str],
    device: torch.device,
) -> TunedDelta | None:
    """The delta of one matrix, or the code of one base; head: what the names of its parts begin
    with."""
    rows_of: dict[str, slice] = {}

    def read(part: str, rows: slice) -> torch.Tensor:
        rows_of[part] = rows
        return packed.store.tensors[f"{stack.prefix}.{head}{part}"].read(rows).to(device)

    _, *shape = stack.stacked
    dtype, one = Dtype[stack.dtype], codec.expert(number)
    parts = codec.take(number, read, (shape[0], shape[1]), dtype, lengths)
    tunable = one.tunable(parts, (shape[0], shape[1]), EncodeContext(dtype.torch, seed))
    if tunable is None:
        return None
    title = f"{stack.title}, {'base' if head else 'matrix'} {number}"
    leaves = {
        name: Leaf(f"{title}: {name}", tunable.kinds[name], value)
        for name, value in tunable.values.items()
        if tunable.kinds[name] in words and value.numel()
    }
    names = {part: codec.part_name(number, part) for part in parts}
    places = {
        part: (f"{stack.prefix}.{head}{name}", rows_of[name], part in one.ragged)
        for part, name in names.items()
    }
    return TunedDelta(tunable, leaves, PartPlaces(places))


@dataclass(frozen=True)
class Placed:
    """What is trained. left_out: one sentence for each tensor whose place in the model was not
    found, so that it stays as it is."""

    units: Sequence[Tuned]
    leaves: Sequence[Leaf]
    left_out: Sequence[str]


def place(collected: Collected, located: Located) -> Placed:
    """Join what is to be trained with its places."""
    units: list[Tuned] = []
    leaves: list[Leaf] = []
    for read in collected.groups:
        assert isinstance(read.stack, PackedGroup)
        places = located.experts.get((read.stack.layer, read.stack.projection), [])
        unit = _stack(read, dict(enumerate(places)))
        if unit is not None:
            units.append(unit[0])
            leaves += unit[1]
    for read in collected.others:
        assert isinstance(read.stack, PackedTensor)
        whole = located.tensors.get(read.stack.name)
        if whole is not None:
            unit = _stack(read, _cut(whole, *read.stack.stacked[:2]))
            if unit is not None:
                units.append(unit[0])
                leaves += unit[1]
    for name, plain in (*collected.biases.items(), *collected.plain.items()):
        where = located.biases.get(name) or located.tensors.get(name)
        if where is not None:
            units.append(TunedTensor(plain, where))
            leaves.append(plain.leaf)
    missing = [f"{name} stays as it is: {why}" for name, why in sorted(located.missing.items())]
    return Placed(units, leaves, missing)


def _cut(whole: Places, count: int, rows: int) -> Mapping[int, Places]:
    return {number: whole.of_rows(number * rows, (number + 1) * rows) for number in range(count)}


def _stack(read: ReadStack, places: Mapping[int, Places]) -> tuple[TunedStack, list[Leaf]] | None:
    """A stack whose matrices are in the model, and what of it is trained. Bases stay as they are
    where a matrix is not there, or does not follow from its base."""
    bases = read.bases
    if len(places) < len(read.deltas) or None in read.deltas:
        dtype = Dtype[read.stack.dtype].torch
        bases = [FixedBase(base.used().to(dtype)) for base in bases]
    known = [
        TunedMatrix(delta, read.stack.base_of(number), places[number])
        for number, delta in enumerate(read.deltas)
        if delta is not None and number in places
    ]
    free = list(_base_leaves(bases))
    if not free:  # a matrix of which nothing is trained need not be computed
        known = [matrix for matrix in known if matrix.delta.leaves]
    leaves = [leaf for matrix in known for leaf in matrix.delta.leaves.values()] + free
    if not leaves:
        return None
    return TunedStack(known, bases), leaves


def _base_leaves(bases: Sequence[Base]) -> Iterator[Leaf]:
    for base in bases:
        if isinstance(base, PlainBase):
            yield base.leaf
        elif isinstance(base, CodedBase):
            yield from base.delta.leaves.values()
