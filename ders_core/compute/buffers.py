"""Memory that is used again: fresh pages cost more than most of what is done in them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

KEPT_BYTES = 1 << 29
"""Held for the next borrower at most."""

KEPT_SMALL_BYTES = 31 << 20
"""glibc keeps freed blocks up to this size once it has seen one of it, and gives larger ones back
to the system, which hands them out again page by page."""

_lock = threading.Lock()
_free: list[torch.Tensor] = []


def keep_small_blocks() -> None:
    """Have the allocator keep what is freed, except for large blocks."""
    torch.empty(KEPT_SMALL_BYTES, dtype=torch.uint8)  # freed at once


@contextmanager
def borrow(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """A CPU tensor with whatever was left in it, for as long as the block runs."""
    size = math.prod(shape) * dtype.itemsize
    with torch.inference_mode(False):  # who fills it, or borrows it next, may not be in that mode
        block = _take(size)
        lent = block[:size].view(dtype).view(shape)
    try:
        yield lent
    finally:
        with _lock:
            _free.append(block)
            while sum(own.numel() for own in _free) > KEPT_BYTES:
                _free.pop(0)


def _take(size: int) -> torch.Tensor:
    """The smallest kept block that is large enough and no more than twice as large, else new."""
    with _lock:
        fitting = [own for own in _free if size <= own.numel() <= 2 * size]
        if fitting:
            best = min(fitting, key=torch.Tensor.numel)
            _free[:] = [own for own in _free if own is not best]
            return best
    return torch.empty(size, dtype=torch.uint8)
