"""Tensors of a GPU that are worked on together, because each piece of work is waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ders_core.later import torch

HELD_BYTES = 2 << 30
"""What they hold together while they are worked on, unless one alone holds more."""


def batches(
    tensors: Iterable[torch.Tensor], held: Callable[[torch.Tensor], int]
) -> Iterator[list[torch.Tensor]]:
    """All tensors, in order: those of a GPU as many at a time as may be held, those of the CPU one
    by one. held: bytes that one holds while it is worked on. A list that was given is the
    caller's."""
    waiting, nbytes = list[torch.Tensor](), 0
    for tensor in tensors:
        if waiting and nbytes + held(tensor) > HELD_BYTES:
            yield waiting
            waiting, nbytes = [], 0
        waiting.append(tensor)
        nbytes += held(tensor)
        if tensor.device.type == "cpu":
            yield waiting
            waiting, nbytes = [], 0
    if waiting:
        yield waiting
