"""From tensors and a layout to expert groups: cut, gathered, and checked to be whole and alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch

from ders_core.checkpoint.axes import EXPERT, PART
from ders_core.checkpoint.groups import Block, ExpertGroup
from ders_core.checkpoint.layouts import PROJECTIONS, Layout, Place
from ders_core.checkpoint.matrix import Matrix, QuantizedMatrix, Slot
from ders_core.checkpoint.quantized import QuantizedWeight
from ders_core.errors import CheckpointError
from ders_core.files.header import TensorInfo
from ders_core.files.spec import NAMES

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class _Found:
    """What the names say of one block."""

    place: Place
    weights: list[tuple[Place, TensorInfo]] = field(default_factory=list)
    shared: list[tuple[Place, TensorInfo]] = field(default_factory=list)


@dataclass(frozen=True)
class Quantized:
    """Weights that lie on disk as codes, by the codes' name. numbers: the dtype to read them as."""

    weights: Mapping[str, QuantizedWeight]
    numbers: torch.dtype

    def matrix(self, info: TensorInfo, slot: Slot) -> Matrix:
        weight = self.weights.get(info.name)
        if weight is None:
            return Matrix(info, slot)
        return QuantizedMatrix(info, slot, weight, self.numbers)

    def shaped(self, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """The tensors with the shapes of their numbers."""
        return {
            name: replace(info, shape=self.weights[name].shape) if name in self.weights else info
            for name, info in tensors.items()
        }


def gather(
    layout: Layout, tensors: Mapping[str, TensorInfo], experts: int | None, quantized: Quantized
) -> list[ExpertGroup]:
    """All groups that the layout finds, by layer and then gate, up, down.

    tensors: with the shapes of their numbers. experts: how many by the config, for tensors whose
    shapes cannot tell it. Raises CheckpointError if experts are missing, unlike, or not stored as
    the layout says.
    """
    found: dict[tuple[str, int], _Found] = {}
    for name, info in tensors.items():
        place = layout.match(name)
        if place is not None:
            own = found.setdefault((place.stack, place.layer), _Found(place))
            own.weights.append((place, info))
    by_layer = {(own.place.scope, own.place.layer): own for own in found.values()}
    for name, info in tensors.items() if layout.shared else ():
        place = layout.match_shared(name)
        if place is not None and (place.scope, place.layer) in by_layer:
            by_layer[place.scope, place.layer].shared.append((place, info))
    everywhere = [
        projection
        for projection in PROJECTIONS
        if any(
            projection in place.weights.holds for own in found.values() for place, _ in own.weights
        )
    ]
    groups: list[ExpertGroup] = []
    for index, stack, own in _numbered(found, tensors):
        place = own.place
        names = (f"{place.block}.{name}" for name in layout.router)
        router = next((name for name in names if name in tensors), None)
        block = Block(place.block, index, stack, place.layer, router)
        rows = tensors[router].shape[0] if router and tensors[router].shape else experts
        matrices = _matrices(layout, own.weights, rows, f"layer {index}", quantized)
        shared = _matrices(layout, own.shared, 1, f"layer {index}, shared expert", quantized)
        _leave_surplus(matrices, experts)
        groups += _block_groups(layout, block, everywhere, matrices, shared)
    return sorted(_runs_apart(groups), key=lambda group: group.layer)


def _numbered(
    found: Mapping[tuple[str, int], _Found], tensors: Iterable[str]
) -> Iterable[tuple[int, int, _Found]]:
    """(layer's index, stack's number, block): the stack with the most bytes first."""
    stacks: dict[str, int] = {}
    for (stack, _), own in found.items():
        stacks[stack] = stacks.get(stack, 0) + sum(info.nbytes for _, info in own.weights)
    # equal stacks in reversed order of names: encoder before decoder, thinker before talker
    order = sorted(sorted(stacks, reverse=True), key=lambda stack: -stacks[stack])
    prefixes = {stack: stack.partition("*")[0] for stack in order}
    numbers = dict.fromkeys(prefixes.values(), 0)
    for name in tensors:
        for prefix in numbers:
            if name.startswith(prefix):
                digits = re.match(r"\d+(?=\.)", name[len(prefix) :])
                numbers[prefix] = max(numbers[prefix], int(digits[0]) + 1 if digits else 0)
    first = 0
    for number, stack in enumerate(order):
        layers = sorted(layer for own, layer in found if own == stack)
        for layer in layers:
            yield first + layer, number, found[stack, layer]
        first += numbers[prefixes[stack]]


def _runs_apart(groups: list[ExpertGroup]) -> list[ExpertGroup]:
    """Runs after a block's first are numbered like the layers of a further stack."""
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
"""(projection, whether biases) -> expert -> matrix"""


def _matrices(
    layout: Layout,
    weights: list[tuple[Place, TensorInfo]],
    experts: int | None,
    where: str,
    quantized: Quantized,
) -> _Matrices:
    """Cut tensors into experts' matrices."""
    found: _Matrices = {}
    for place, info in weights:
        axes = place.weights.parsed
        known = {PART: len(place.weights.holds)}
        if axes.needs_experts:
            if experts is None:
                raise CheckpointError(
                    f"{where}: {info.name!r} stacks its experts along one dimension, and neither "
                    "a router nor config.json says how many they are; the checkpoint is incomplete"
                )
            known[EXPERT] = experts
        try:
            sizes = axes.sizes(info.shape, known)
        except ValueError as error:
            raise CheckpointError(
                f"{where}, {' and '.join(place.weights.holds)}: {info.name!r} has shape "
                f"{list(info.shape)}, not a matrix for each expert: {error}; "
                f"the layout is not {layout.family!r}"
            ) from error
        for part, projection in enumerate(place.weights.holds):
            own = found.setdefault((projection, axes.is_bias), {})
            for number in range(sizes.get(EXPERT, 1)):
                expert = place.expert if place.expert is not None else number
                own[expert] = quantized.matrix(info, Slot(axes, sizes, number, part))
    return found


def _leave_surplus(matrices: _Matrices, experts: int | None) -> None:
    """Drop what only some projections have beyond the config's number of experts: experts that pass
    their input through (LongCat's zero experts) may have left a shell behind."""
    counts = {len(own) for own in matrices.values()}
    whole = all(max(own) + 1 == len(own) for own in matrices.values())
    if whole and experts is not None and len(counts) > 1 and min(counts) == experts:
        for own in matrices.values():
            for expert in [number for number in own if number >= experts]:
                del own[expert]


def _block_groups(
    layout: Layout, block: Block, projections: list[str], matrices: _Matrices, shared: _Matrices
) -> list[ExpertGroup]:
    """Check one block's experts and make its groups; several runs where shapes are unlike."""
    most = max(len(own) for own in matrices.values())
    weights: dict[str, tuple[Matrix, ...]] = {}
    biases: dict[str, tuple[Matrix, ...]] = {}
    for projection in projections:
        where = f"layer {block.index}, {projection}"
        weights[projection] = _whole(where, matrices.get((projection, False), {}), most)
        if (projection, True) in matrices:
            biases[projection] = _whole(f"{where}, bias", matrices[projection, True], most)
    runs = _runs(layout, block, weights, biases)
    groups = []
    for number, run in enumerate(runs):
        own = replace(block, run=number) if len(runs) > 1 else block
        groups += [
            ExpertGroup(
                own,
                projection,
                weights[projection][run],
                biases.get(projection, ())[run],
                shared.get((projection, False), {}).get(0),
                shared.get((projection, True), {}).get(0),
            )
            for projection in projections
        ]
    return groups


def _whole(where: str, experts: dict[int, Matrix], count: int) -> tuple[Matrix, ...]:
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
    """Runs of experts that are alike; a run of one among others is damage."""
    columns = [*weights.items(), *((f"{name} bias", own) for name, own in biases.items())]
    count = len(columns[0][1])
    alike = [
        tuple((own[expert].shape, own[expert].dtype) for _, own in columns)
        for expert in range(count)
    ]
    runs: list[slice] = []
    for _, members in groupby(range(count), key=lambda expert: alike[expert]):
        numbers = list(members)
        runs.append(slice(numbers[0], numbers[-1] + 1))
    lonely = next((run.start for run in runs if run.stop - run.start == 1), None)
    if len(runs) > 1 and lonely is not None:
        odd = lonely or 1
        name, own = next(
            (name, own)
            for name, own in columns
            if (own[odd].shape, own[odd].dtype) != (own[0].shape, own[0].dtype)
        )
        raise CheckpointError(
            f"layer {block.index}, {name}: expert {odd} is {NAMES[own[odd].dtype]} "
            f"{list(own[odd].shape)}, expert 0 {NAMES[own[0].dtype]} {list(own[0].shape)}; the "
            f"checkpoint is damaged or its layout is not {layout.family!r}"
        )
    for name, own in columns:
        first = own[0]
        if first.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(
                f"layer {block.index}, {name}: the experts are stored as {NAMES[first.dtype]}, an "
                "already quantized form that is not known here; give the bfloat16, float16 or "
                "float32 original"
            )
        if not all(first.shape):
            raise CheckpointError(
                f"layer {block.index}, {name}: expert 0 has shape {list(first.shape)}, not a "
                f"matrix; the layout is not {layout.family!r}"
            )
    return runs
