"""Reused memory: touching fresh pages costs more than most computations on them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ders_core.later import np, torch

KEPT_BYTES = 1 << 29
"""How much returned memory is kept for the next borrower, at most."""

KEPT_SMALL_BYTES = 31 << 20
"""glibc keeps freed blocks of up to this size once one block of this size was freed. It returns
larger blocks to the system, which hands them out again page by page."""

_lock = threading.Lock()
_free: list[torch.Tensor] = []


def keep_small_blocks() -> None:
    """Make the allocator keep freed blocks, except for large ones."""
    torch.empty(KEPT_SMALL_BYTES, dtype=torch.uint8)  # freed immediately


def fresh(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """An uninitialised tensor. On the CPU it is numpy's memory, for which Linux takes huge pages:
    hundreds of times fewer of them are touched first."""
    if torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = torch.from_numpy(np.empty(max(size, 1), dtype=np.uint8))  # of nothing there is no view
    return memory[:size].view(dtype).view(shape)


@contextmanager
def borrow(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield an uninitialised CPU tensor; its memory is reused when the block ends."""
    size = math.prod(shape) * dtype.itemsize
    with torch.inference_mode(False):  # the next borrower may not be in inference mode
        block = _take(size)
        tensor = block[:size].view(dtype).view(shape)
    try:
        yield tensor
    finally:
        with _lock:
            _free.append(block)
            while sum(free.numel() for free in _free) > KEPT_BYTES:
                _free.pop(0)


def _take(size: int) -> torch.Tensor:
    """The smallest kept block of `size` to twice `size` bytes, or a new one."""
    with _lock:
        fitting = [free for free in _free if size <= free.numel() <= 2 * size]
        if fitting:
            best = min(fitting, key=torch.Tensor.numel)
            _free[:] = [free for free in _free if free is not best]
            return best
    return fresh((size,), torch.uint8)
