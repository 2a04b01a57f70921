"""From tensors and a layout to expert groups: cut into matrices, checked for gaps."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from ders_core.checkpoint.axes import EXPERT, PART
from ders_core.checkpoint.groups import Block, ExpertGroup
from ders_core.checkpoint.layouts import PROJECTIONS, Layout, Match, Weights
from ders_core.checkpoint.matrix import Matrix, QuantizedMatrix, Slot
from ders_core.checkpoint.names import number_of
from ders_core.checkpoint.numbering import NumberedNames
from ders_core.checkpoint.quantized import QuantizedWeight
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import TensorReader

WEIGHT_DTYPES = (Dtype.F32, Dtype.F16, Dtype.BF16)


_Member = tuple[Weights, int | None, TensorReader]
"""A tensor with what its name says: what it holds, and of which expert; None if of all."""


@dataclass
class _BlockTensors:
    """The tensors of one MoE block. match: of the first of them."""

    match: Match
    weights: list[_Member] = field(default_factory=list)
    shared: list[_Member] = field(default_factory=list)


@dataclass(frozen=True)
class CodedTensors:
    """The weights that are stored as codes and scales, by the name of the codes' tensor.

    numbers: the dtype in which their values are read.
    """

    weights: Mapping[str, QuantizedWeight]
    numbers: Dtype

    def matrix(self, tensor: TensorReader, slot: Slot) -> Matrix:
        """The matrix at `slot` of a tensor's numbers."""
        weight = self.weights.get(tensor.name) if self.weights else None
        if weight is None:
            return Matrix(tensor, slot)
        return QuantizedMatrix(tensor, slot, weight, self.numbers)

    def shape(self, tensor: TensorReader) -> tuple[int, ...]:
        """The shape of a tensor's numbers: not that of the tensor where it holds codes."""
        weight = self.weights.get(tensor.name) if self.weights else None
        return tensor.shape if weight is None else weight.shape

    def specs(self, tensors: Mapping[str, TensorReader]) -> dict[str, TensorSpec]:
        """Storage dtype and shape of the numbers of every tensor, by name."""
        return {
            name: TensorSpec(tensor.dtype, self.shape(tensor))
            if name in self.weights
            else tensor.spec
            for name, tensor in tensors.items()
        }


def gather(
    layout: Layout,
    tensors: Mapping[str, TensorReader],
    experts: int | None,
    coded: CodedTensors,
    names: NumberedNames | None = None,
) -> list[ExpertGroup]:
    """All groups of a checkpoint that follows the layout, by layer and then gate, up, down.

    experts: the number that the config names, for tensors whose shapes do not show it. names: of
    the tensors, if that is at hand. Raises CheckpointError if experts are missing, unlike, or not
    stored as the layout says.
    """
    blocks: dict[tuple[str, int], _BlockTensors] = {}
    others: dict[str, TensorReader] = {}
    matches = layout.match_each(names or NumberedNames.of(tensors))
    for (name, tensor), found in zip(tensors.items(), matches, strict=True):
        if found is None:
            others[name] = tensor
        else:
            match, expert = found
            place = match.stack, match.layer
            members = blocks.get(place) or blocks.setdefault(place, _BlockTensors(match))
            members.weights.append((match.weights, expert, tensor))
    by_layer = {(members.match.scope, members.match.layer): members for members in blocks.values()}
    if layout.shared:
        matches = layout.match_each_shared(NumberedNames.of(others))
        for tensor, found in zip(others.values(), matches, strict=True):
            if found is not None and (found[0].scope, found[0].layer) in by_layer:
                match, expert = found
                members = by_layer[match.scope, match.layer]
                members.shared.append((match.weights, expert, tensor))
    held = {
        projection
        for members in blocks.values()
        for weights, _, _ in members.weights
        for projection in weights.holds
    }
    projections = [projection for projection in PROJECTIONS if projection in held]
    groups: list[ExpertGroup] = []
    for index, stack, members in _numbered(blocks, tensors):
        match = members.match
        routers = (f"{match.block}.{name}" for name in layout.router)
        router = next((name for name in routers if name in tensors), None)
        block = Block(match.block, index, stack, match.layer, router)
        rows = tensors[router].shape[0] if router and tensors[router].shape else experts
        matrices = _matrices(layout, members.weights, rows, f"layer {index}", coded)
        shared = _matrices(layout, members.shared, 1, f"layer {index}, shared expert", coded)
        _leave_surplus(matrices, experts)
        groups += _block_groups(layout, block, projections, matrices, shared)
    return sorted(_separate_runs(groups), key=lambda group: group.layer)


def _numbered(
    blocks: Mapping[tuple[str, int], _BlockTensors], names: Collection[str]
) -> Iterator[tuple[int, int, _BlockTensors]]:
    """(layer's index, stack's number, block): the stack with the most bytes first."""
    stacks: dict[str, int] = {}
    for (stack, _), members in blocks.items():
        size = sum(tensor.nbytes for *_, tensor in members.weights)
        stacks[stack] = stacks.get(stack, 0) + size
    # equal stacks in reversed order of names: encoder before decoder, thinker before talker
    order = sorted(sorted(stacks, reverse=True), key=lambda stack: -stacks[stack])
    prefixes = {stack: stack.partition("*")[0] for stack in order}
    lengths = dict.fromkeys(prefixes.values(), 0)
    for prefix in lengths:
        behind = (name[len(prefix) :] for name in names if name.startswith(prefix))
        for digits in {text.partition(".")[0] for text in behind if "." in text}:
            number = number_of(digits) if digits.isdecimal() else None
            if number is not None:
                lengths[prefix] = max(lengths[prefix], number + 1)
    first = 0
    for number, stack in enumerate(order):
        for layer in sorted(layer for other, layer in blocks if other == stack):
            yield first + layer, number, blocks[stack, layer]
        first += lengths[prefixes[stack]]


def _separate_runs(groups: list[ExpertGroup]) -> list[ExpertGroup]:
    """Number the runs after a block's first like the layers of a further stack."""
    span = 1 + max((group.layer for group in groups), default=0)
    stacks = 1 + max((group.block.stack for group in groups), default=0)
    return [
        replace(
            group,
            block=replace(
                group.block,
                index=group.layer + group.block.run * span,
                stack=group.block.stack + group.block.run * stacks,
            ),
        )
        for group in groups
    ]


_Matrices = dict[tuple[str, bool], dict[int, Matrix]]
"""(projection, whether biases) -> expert's number -> matrix"""

_Cut = list[tuple[dict[int, Matrix], int, Slot]]
"""Of a tensor: for each matrix in it the dictionary that it goes to, which of the tensor's experts
has it, and its place in the tensor."""


def _matrices(
    layout: Layout,
    members: list[_Member],
    experts: int | None,
    where: str,
    coded: CodedTensors,
) -> _Matrices:
    """Cut tensors into experts' matrices."""
    matrices: _Matrices = {}
    cuts: dict[tuple[int, tuple[int, ...]], _Cut] = {}  # one for tensors that are alike
    for weights, named, tensor in members:
        shape = coded.shape(tensor)
        form = id(weights), shape
        cut = cuts.get(form)
        if cut is None:
            slots = _slots(layout, weights, tensor.name, shape, experts, where)
            kinds = [(projection, weights.parsed.is_bias) for projection in weights.holds]
            by_expert = [matrices.setdefault(kind, {}) for kind in kinds]
            cut = cuts[form] = [
                (of_projection, number, slot)
                for of_projection, of_experts in zip(by_expert, slots, strict=True)
                for number, slot in enumerate(of_experts)
            ]
        for of_projection, number, slot in cut:
            of_projection[number if named is None else named] = coded.matrix(tensor, slot)
    return matrices


def _slots(
    layout: Layout,
    weights: Weights,
    name: str,
    shape: tuple[int, ...],
    experts: int | None,
    where: str,
) -> list[list[Slot]]:
    """For each projection that a tensor of that name and shape holds, the slots of its experts."""
    axes = weights.parsed
    known = {PART: len(weights.holds)}
    if axes.needs_experts:
        if experts is None:
            raise CheckpointError(
                f"{where}: {name!r} stacks its experts along one dimension, and neither "
                "a router nor config.json says how many they are; the checkpoint is incomplete"
            )
        known[EXPERT] = experts
    try:
        sizes = axes.sizes(shape, known)
    except ValueError as error:
        raise CheckpointError(
            f"{where}, {' and '.join(weights.holds)}: {name!r} has shape "
            f"{list(shape)}, not a matrix for each expert: {error}; "
            f"the layout is not {layout.family!r}"
        ) from error
    return [
        [Slot(axes, sizes, number, part) for number in range(sizes.get(EXPERT, 1))]
        for part in range(len(weights.holds))
    ]


def _leave_surplus(matrices: _Matrices, experts: int | None) -> None:
    """Drop matrices of experts beyond the config's number that not every projection has.

    Experts that pass their input through (LongCat's zero experts) may have left such a shell.
    """
    counts = {len(by_expert) for by_expert in matrices.values()}
    gapless = all(max(by_expert) + 1 == len(by_expert) for by_expert in matrices.values())
    if gapless and experts is not None and len(counts) > 1 and min(counts) == experts:
        for by_expert in matrices.values():
            for expert in [number for number in by_expert if number >= experts]:
                del by_expert[expert]


def _block_groups(
    layout: Layout, block: Block, projections: Sequence[str], matrices: _Matrices, shared: _Matrices
) -> list[ExpertGroup]:
    """Check one block's experts and make its groups; several runs where shapes are unlike."""
    most = max(len(by_expert) for by_expert in matrices.values())
    weights: dict[str, tuple[Matrix, ...]] = {}
    biases: dict[str, tuple[Matrix, ...]] = {}
    for projection in projections:
        where = f"layer {block.index}, {projection}"
        weights[projection] = _complete(where, matrices.get((projection, False), {}), most)
        if (projection, True) in matrices:
            biases[projection] = _complete(f"{where}, bias", matrices[projection, True], most)
    runs = _runs(layout, block, weights, biases)
    groups = []
    for number, run in enumerate(runs):
        numbered = replace(block, run=number) if len(runs) > 1 else block
        groups += [
            ExpertGroup(
                numbered,
                projection,
                weights[projection][run],
                biases.get(projection, ())[run],
                shared.get((projection, False), {}).get(0),
                shared.get((projection, True), {}).get(0),
            )
            for projection in projections
        ]
    return groups


def _complete(where: str, experts: dict[int, Matrix], count: int) -> tuple[Matrix, ...]:
    """The matrices of experts 0 … count - 1. Raises CheckpointError if one is missing."""
    if not experts:
        raise CheckpointError(f"{where}: all experts are missing; a shard may be missing")
    missing = next((index for index in range(count) if index not in experts), None)
    if missing is not None:
        raise CheckpointError(f"{where}: expert {missing} is missing; a shard may be missing")
    return tuple(experts[index] for index in range(count))


def _runs(
    layout: Layout,
    block: Block,
    weights: Mapping[str, tuple[Matrix, ...]],
    biases: Mapping[str, tuple[Matrix, ...]],
) -> list[slice]:
    """Slices of consecutive experts of one shape and dtype; a run of one among others is damage."""
    columns = [*weights.items(), *((f"{name} bias", column) for name, column in biases.items())]
    count = len(columns[0][1])
    forms = list(
        zip(
            *([(matrix.shape, matrix.dtype) for matrix in column] for _, column in columns),
            strict=True,
        )
    )
    runs: list[slice] = []
    for _, members in groupby(range(count), key=lambda expert: forms[expert]):
        numbers = list(members)
        runs.append(slice(numbers[0], numbers[-1] + 1))
    lonely = next((run.start for run in runs if run.stop - run.start == 1), None)
    if len(runs) > 1 and lonely is not None:
        odd = lonely or 1
        name, unlike, first = next(
            (name, column[odd], column[0])
            for name, column in columns
            if (column[odd].shape, column[odd].dtype) != (column[0].shape, column[0].dtype)
        )
        if unlike.shape == first.shape:
            raise CheckpointError(
                f"layer {block.index}, {name}: expert {odd} is stored as {unlike.dtype.name}, "
                f"expert 0 as {first.dtype.name}; experts that share a base need one dtype, so "
                "convert the checkpoint to one, for instance by transformers' "
                "from_pretrained(dtype=…) and save_pretrained()"
            )
        raise CheckpointError(
            f"layer {block.index}, {name}: expert {odd} is {unlike.dtype.name} "
            f"{list(unlike.shape)}, expert 0 {first.dtype.name} {list(first.shape)}; the "
            f"checkpoint is damaged or its layout is not {layout.family!r}"
        )
    for name, column in columns:
        first = column[0]
        if first.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(
                f"layer {block.index}, {name}: the experts are stored as {first.dtype.name}, an "
                "already quantized form that is not known here; give the bfloat16, float16 or "
                "float32 original"
            )
        if not all(first.shape):
            raise CheckpointError(
                f"layer {block.index}, {name}: expert 0 has shape {list(first.shape)}, not a "
                f"matrix; the layout is not {layout.family!r}"
            )
    return runs
