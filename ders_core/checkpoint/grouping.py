"""From tensors and a layout to expert groups: cut into matrices, checked for gaps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, filterfalse, groupby

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


@dataclass
class _Column:
    """Tensors of one block whose names differ in the expert's number only. experts: these numbers;
    None if the name has none, and the tensor is of all."""

    match: Match
    experts: list[int | None] = field(default_factory=list)
    tensors: list[TensorReader] = field(default_factory=list)


@dataclass
class _BlockTensors:
    """The tensors of one MoE block. match: of the first of them."""

    match: Match
    weights: list[_Column] = field(default_factory=list)
    shared: list[_Column] = field(default_factory=list)


@dataclass(frozen=True)
class CodedTensors:
    """The weights that are stored as codes and scales, by the name of the codes' tensor.

    numbers: the dtype in which their values are read.
    """

    weights: Mapping[str, QuantizedWeight]
    numbers: Dtype

    def matrices(self, tensors: Iterable[TensorReader], slot: Slot) -> list[Matrix]:
        """The matrix at `slot` of each tensor's numbers."""
        if not self.weights:
            return [Matrix(tensor, slot) for tensor in tensors]
        return [self._matrix(tensor, slot) for tensor in tensors]

    def _matrix(self, tensor: TensorReader, slot: Slot) -> Matrix:
        weight = self.weights.get(tensor.name)
        if weight is None:
            return Matrix(tensor, slot)
        return QuantizedMatrix(tensor, slot, weight, self.numbers)

    def shape(self, tensor: TensorReader) -> tuple[int, ...]:
        """The shape of a tensor's numbers: not that of the tensor where it holds codes."""
        weight = self.weights.get(tensor.name) if self.weights else None
        return tensor.spec.shape if weight is None else weight.shape

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
    matches = layout.match_each(names or NumberedNames.of(tensors))
    columns, others = _columns(matches, tensors)
    for column in columns:
        match = column.match
        members = blocks.setdefault((match.stack, match.layer), _BlockTensors(match))
        members.weights.append(column)
    by_layer = {(members.match.scope, members.match.layer): members for members in blocks.values()}
    if layout.shared:
        for column in _columns(layout.match_each_shared(NumberedNames.of(others)), others)[0]:
            owner = by_layer.get((column.match.scope, column.match.layer))
            if owner is not None:
                owner.shared.append(column)
    held = {projection for column in columns for projection in column.match.weights.holds}
    projections = [projection for projection in PROJECTIONS if projection in held]
    groups: list[ExpertGroup] = []
    for index, stack, members in _numbered(blocks, tensors, others):
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


def _columns(
    matches: Iterable[tuple[Match, int | None] | None], tensors: Mapping[str, TensorReader]
) -> tuple[list[_Column], dict[str, TensorReader]]:
    """The tensors with a match, and all others. matches: one for each tensor."""
    columns: dict[int, _Column] = {}  # each holds its match, so that no other has its id
    others: dict[str, TensorReader] = {}
    for (name, tensor), found in zip(tensors.items(), matches, strict=True):
        if found is None:
            others[name] = tensor
            continue
        match, expert = found
        column = columns.get(id(match))
        if column is None:
            column = columns[id(match)] = _Column(match)
        column.experts.append(expert)
        column.tensors.append(tensor)
    return list(columns.values()), others


def _numbered(
    blocks: Mapping[tuple[str, int], _BlockTensors],
    tensors: Collection[str],
    others: Collection[str],
) -> Iterator[tuple[int, int, _BlockTensors]]:
    """(layer's index, stack's number, block): the stack with the most bytes first.

    tensors: the names of all tensors; others: of those without a match.
    """
    stacks = dict.fromkeys((stack for stack, _ in blocks), 0)
    if len(stacks) > 1:
        for (stack, _), members in blocks.items():
            stacks[stack] += sum(
                tensor.nbytes for column in members.weights for tensor in column.tensors
            )
    # equal stacks in reversed order of names: encoder before decoder, thinker before talker
    order = sorted(sorted(stacks, reverse=True), key=lambda stack: -stacks[stack])
    prefixes = {stack: stack.partition("*")[0] for stack in order}
    lengths = dict.fromkeys(prefixes.values(), 0)
    names = _names_of_layers(blocks, tensors, others, prefixes.values())
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


def _names_of_layers(
    blocks: Mapping[tuple[str, int], _BlockTensors],
    tensors: Collection[str],
    others: Collection[str],
    prefixes: Collection[str],
) -> Collection[str]:
    """Names in which the numbers behind the prefixes are those of all names: one for each column of
    experts, since in a block's own name they are the same."""
    columns = [column for members in blocks.values() for column in members.weights]
    of_blocks = dict.fromkeys(f"{column.match.block}." for column in columns)
    if any(prefix.startswith(block) for prefix in prefixes for block in of_blocks):
        return tensors  # a stack inside of a block
    return [*of_blocks, *others]


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


def _matrices(
    layout: Layout,
    columns: list[_Column],
    experts: int | None,
    where: str,
    coded: CodedTensors,
) -> _Matrices:
    """Cut tensors into experts' matrices."""
    matrices: _Matrices = {}
    for column in columns:
        weights = column.match.weights
        shapes = [coded.shape(tensor) for tensor in column.tensors]
        for shape in dict.fromkeys(shapes):
            alike = [each == shape for each in shapes]
            tensors = list(compress(column.tensors, alike))
            named = list(compress(column.experts, alike))
            slots = _slots(layout, weights, tensors[0].name, shape, experts, where)
            for projection, of_experts in zip(weights.holds, slots, strict=True):
                of_projection = matrices.setdefault((projection, weights.parsed.is_bias), {})
                for number, slot in enumerate(of_experts):
                    numbers = (number if name is None else name for name in named)
                    of_projection |= zip(numbers, coded.matrices(tensors, slot), strict=True)
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
    missing = next(filterfalse(experts.__contains__, range(count)), None)
    if missing is not None:
        raise CheckpointError(f"{where}: expert {missing} is missing; a shard may be missing")
    return tuple(map(experts.__getitem__, range(count)))


def _runs(
    layout: Layout,
    block: Block,
    weights: Mapping[str, tuple[Matrix, ...]],
    biases: Mapping[str, tuple[Matrix, ...]],
) -> list[slice]:
    """Slices of consecutive experts of one shape and dtype; a run of one among others is damage."""
    columns = [*weights.items(), *((f"{name} bias", column) for name, column in biases.items())]
    count = len(columns[0][1])
    forms = [[(matrix.shape, matrix.dtype) for matrix in column] for _, column in columns]
    runs: list[slice] = []
    if all(of_column.count(of_column[0]) == count for of_column in forms):
        runs.append(slice(0, count))
    else:
        rows = list(zip(*forms, strict=True))
        for _, members in groupby(range(count), key=rows.__getitem__):
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
                f"layer {block.index}, {name}: the experts are stored as {first.dtype.name}, "
                + (
                    "which is not supported; convert the checkpoint to float32, for instance by "
                    "transformers' from_pretrained(dtype=…) and save_pretrained()"
                    if first.dtype is Dtype.F64
                    else "an already quantized form that is not known here; give the bfloat16, "
                    "float16 or float32 original"
                )
            )
        if not all(first.shape):
            raise CheckpointError(
                f"layer {block.index}, {name}: expert 0 has shape {list(first.shape)}, not a "
                f"matrix; the layout is not {layout.family!r}"
            )
    return runs
