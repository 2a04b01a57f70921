"""Tensors of a GPU that are worked on together, because each piece of work is waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ders_core.later import torch

LEAST_BYTES, SHARE = 2 << 30, 4
"""What they hold together while they are worked on, unless one alone holds more: so many bytes, or
one part in so many of the GPU's memory where that is more."""


def held_at_once(device: torch.device) -> int:
    """Bytes that tensors of a device which are worked on together may hold. They depend on the GPU
    and not on what is free, so that its results do not either."""
    if device.type != "cuda":
        return LEAST_BYTES
    return max(LEAST_BYTES, int(torch.cuda.get_device_properties(device).total_memory) // SHARE)


def batches(
    tensors: Iterable[torch.Tensor], held: Callable[[torch.Tensor], int]
) -> Iterator[list[torch.Tensor]]:
    """All tensors, in order: those of a GPU as many at a time as may be held, those of the CPU one
    by one. held: bytes that one holds while it is worked on. A list that was given is the
    caller's."""
    waiting, nbytes = list[torch.Tensor](), 0
    for tensor in tensors:
        if waiting and nbytes + held(tensor) > held_at_once(tensor.device):
            yield waiting
            waiting, nbytes = [], 0
        waiting.append(tensor)
        nbytes += held(tensor)
        if tensor.device.type == "cpu":
            yield waiting
            waiting, nbytes = [], 0
    if waiting:
        yield waiting
