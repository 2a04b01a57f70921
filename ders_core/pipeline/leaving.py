"""What a GPU has encoded, brought to the CPU for many experts at once: each copy is waited for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ders_core.codecs import Parts
from ders_core.later import torch
from ders_core.pipeline.judge import Losses
from ders_core.pipeline.knowledge import EncodedExpert

AT_ONCE = 256 << 20
"""Bytes of parts that wait on a GPU before they leave it together, and at most an expert's more."""

ALIGNMENT = 16
"""Bytes; where a tensor begins among others, so that any dtype can be read there."""


def on_cpu(encoded: Iterable[EncodedExpert]) -> Iterator[tuple[Parts, Losses]]:
    """The parts on the CPU and the losses of each expert, in order. On a GPU the next ones are
    encoded before the first are brought."""
    waiting, held = list[EncodedExpert](), 0
    for expert in encoded:
        if expert.sums.device.type == "cpu":
            yield expert.parts, expert.losses
            continue
        waiting.append(expert)
        held += sum(part.nbytes for part in expert.parts.values())
        if held >= AT_ONCE:
            yield from _brought(waiting)
            waiting, held = [], 0
    yield from _brought(waiting)


def _brought(experts: Sequence[EncodedExpert]) -> Iterator[tuple[Parts, Losses]]:
    tensors = [tensor for each in experts for tensor in (each.sums, *each.parts.values())]
    brought = iter(bring_together(tensors))
    for each in experts:
        losses = each.losses_by(next(brought).tolist())
        yield {name: next(brought) for name in each.parts}, losses


def bring_together(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same tensors on the CPU, contiguous, by one copy: views of one memory."""
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
