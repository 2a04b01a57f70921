"""What a GPU has encoded, brought to the CPU for many experts at once: each copy is waited for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ders_core.codecs import Parts
from ders_core.compute.brought import LARGE, bring_together
from ders_core.later import torch
from ders_core.pipeline.judge import Losses
from ders_core.pipeline.knowledge import EncodedExpert

AT_ONCE = 128 << 20
"""Bytes of parts that wait on a GPU before they leave it together, and at most an expert's more.
While they leave, a copy takes as much again, but for what is `LARGE`."""


def on_cpu(encoded: Iterable[EncodedExpert]) -> Iterator[tuple[Parts, Losses]]:
    """The parts on the CPU and the losses of each expert, in order. On a GPU the next ones are
    encoded before the first are brought. Raises the errors of their checks."""
    waiting, held = list[EncodedExpert](), 0
    for expert in encoded:
        if expert.sums.device.type == "cpu":
            yield expert.parts, expert.losses
            continue
        waiting.append(expert)
        held += sum(part.nbytes for part in expert.parts.values())
        if held >= AT_ONCE:
            yield from _brought(waiting)
            held = 0
    yield from _brought(waiting)


def tensors_on_cpu(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The same, contiguous, on the CPU, in order. On a GPU the next ones are made before the first
    are brought, but not while one of `LARGE` waits; those of the CPU wait for the ones before them.
    All that waits is up to `AT_ONCE`, and a tensor more."""
    waiting, held, is_any_there = list[torch.Tensor](), 0, False
    for tensor in tensors:
        waiting.append(tensor)
        held += tensor.nbytes
        is_any_there |= tensor.device.type != "cpu"
        del tensor  # once it is used, its memory is free while the next one is waited for
        if not is_any_there or held >= AT_ONCE or waiting[-1].nbytes >= LARGE:
            yield from _emptied(waiting)
            held, is_any_there = 0, False
    yield from _emptied(waiting)


def _emptied(waiting: list[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of a list, on the CPU. Empties it, as `_brought` does."""
    brought = bring_together(waiting)
    waiting.clear()
    return brought


def _brought(experts: list[EncodedExpert]) -> list[tuple[Parts, Losses]]:
    """All of them. Empties the list: what is on the GPU is free while they are used."""
    tensors = [tensor for each in experts for tensor in (each.sums, *each.parts.values())]
    brought = iter(bring_together(tensors))
    left = list[tuple[Parts, Losses]]()
    for each in experts:
        losses = each.losses_by(next(brought).tolist())
        left.append(({name: next(brought) for name in each.parts}, losses))
    experts.clear()
    return left
