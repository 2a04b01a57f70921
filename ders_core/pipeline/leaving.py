"""What a GPU has encoded, brought to the CPU for many experts at once: each copy is waited for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress

from ders_core.codecs import Parts
from ders_core.later import torch
from ders_core.pipeline.judge import Losses
from ders_core.pipeline.knowledge import EncodedExpert

AT_ONCE = 128 << 20
"""Bytes of parts that wait on a GPU before they leave it together, and at most an expert's more.
While they leave, a copy takes as much again, but for what is `LARGE`."""

LARGE = 16 << 20
"""Bytes from which on a tensor leaves alone: its copy takes longer than it is waited for."""

ALIGNMENT = 16
"""Bytes; where a tensor begins among others, so that any dtype can be read there."""


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


def bring_together(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same tensors on the CPU, contiguous: those of a GPU below `LARGE` by one copy, as views
    of one memory."""
    small = [each.device.type != "cpu" and each.nbytes < LARGE for each in tensors]
    joined = iter(_joined([*compress(tensors, small)]))
    return [
        next(joined) if is_small else tensor.cpu().contiguous()
        for tensor, is_small in zip(tensors, small, strict=True)
    ]


def _joined(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    if not tensors:
        return []
    pieces = list[torch.Tensor]()
    for tensor in tensors:
        piece = tensor.reshape(-1).view(torch.uint8)
        pieces += [piece, piece.new_zeros(-len(piece) % ALIGNMENT)]
    sizes = [len(piece) for piece in pieces]
    together = torch.cat(pieces).cpu().split(sizes)[::2]
    return [
        piece.view(tensor.dtype).view(tensor.shape)
        for piece, tensor in zip(together, tensors, strict=True)
    ]
