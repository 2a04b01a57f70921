"""Experts synthesized side by side, each straight into its place in the model's parameter.

transformers gathers the experts of a layer in one tensor: it reads one after another, stacks gate
and up by themselves, and concatenates them. That takes three times the memory, which one thread
touches first. Here the parameter is made once, and threads fill it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from ders_core.compute.buffers import lasting
from ders_core.compute.pools import in_order
from ders_core.compute.threads import in_this_mode, side_by_side, threads_for
from ders_core.hf.lazy import Postponed, postponed
from ders_core.packed.assembler import WORKING_BYTES_A_WEIGHT

Experts = Mapping[str, Sequence[Postponed]]
"""Source pattern -> the tensor of one expert after another."""


class Gathering(WeightConverter):
    """A conversion that takes its tensors from `LazyTensor`s; its results are transformers' own."""

    __slots__ = ()

    def materialize_tensors(self) -> dict[str, Any]:
        """Source pattern -> its tensors; or the target pattern -> its parameter, and then no
        operation is left. Raises CheckpointError if a file cannot be read, CodecError if a part is
        damaged."""
        with postponed():
            collected = super().materialize_tensors()
        are_lazy = all(isinstance(tensor, Postponed) for tensor in chain(*collected.values()))
        parameter = self._filled(collected) if are_lazy else None
        if parameter is None:
            return {name: [_whole(each) for each in found] for name, found in collected.items()}
        self.operations.clear()  # a copy's, made for this parameter alone
        return {self.target_patterns[0]: parameter}

    def _filled(self, experts: Experts) -> torch.Tensor | None:
        """The parameter `[experts, …]`; None where the operations make something else of them."""
        steps = [(type(step), getattr(step, "dim", None)) for step in self.operations]
        names = [name for name in self.source_patterns if name in experts]
        stacks = [experts[name] for name in names]
        if len(self.target_patterns) != 1 or not (
            (steps == [_STACK] and len(stacks) == 1)
            or (steps == [_STACK, _CONCATENATE] and len(stacks) == len(self.source_patterns) > 1)
        ):
            return None
        return _side_by_side(stacks)


_STACK, _CONCATENATE = (MergeModulelist, 0), (Concatenate, 1)


@contextmanager
def gathering(model: PreTrainedModel, conversions: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield transformers' conversions, those of weights as `Gathering`. The model that is loaded
    with them keeps the ones that were used, as they are given here, for when it is saved."""
    ours = [_ours(each) if type(each) is WeightConverter else each for each in conversions]
    yield ours
    given = {id(each): original for each, original in zip(ours, conversions, strict=True)}
    used: Any = model._weight_conversions
    model._weight_conversions = [given[id(each)] for each in used]


def _ours(conversion: WeightConverter) -> Gathering:
    ours: Gathering = copy(conversion)
    ours.__class__ = Gathering  # its fields are not to be given again: they were rewritten
    return ours


def _whole(tensor: Any) -> Any:
    return tensor.read() if isinstance(tensor, Postponed) else tensor


def _side_by_side(stacks: Sequence[Sequence[Postponed]]) -> torch.Tensor | None:
    """What stacking each and concatenating the stacks gives: `[experts, rows of all stacks, …]`.
    None where shapes, dtypes or devices differ, of which transformers tells."""
    first, count = stacks[0][0], len(stacks[0])
    alike = all(
        len(stack) == count and len({each.shape for each in stack}) == 1 for stack in stacks
    )
    kinds = {(each.place, each.wanted, each.shape[1:]) for each in chain(*stacks)}
    if not alike or len(kinds) != 1 or not first.shape:
        return None
    heights = [stack[0].shape[0] for stack in stacks]
    parameter = lasting((count, sum(heights), *first.shape[1:]), first.wanted, first.place)
    tasks: list[tuple[Postponed, torch.Tensor]] = []
    for stack, rows in zip(stacks, parameter.split(heights, dim=1), strict=True):
        tasks += zip(stack, rows.unbind(), strict=True)
    fill, cpu = in_this_mode(_fill), torch.device("cpu")
    largest = max(map(math.prod, (stack[0].shape for stack in stacks)))
    threads = threads_for(len(tasks), WORKING_BYTES_A_WEIGHT * largest, cpu)
    with side_by_side(cpu, threads) as pool:
        for _ in in_order(pool, fill, tasks, 2 * threads):
            pass
    return parameter


def _fill(task: tuple[Postponed, torch.Tensor]) -> None:
    tensor, place = task
    place.copy_(tensor.synthesized())
