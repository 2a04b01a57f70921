"""Memory for the pieces of a stack that are read ahead: reused, and for a GPU pinned."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from ders_core.compute.buffers import borrow
from ders_core.later import torch

T = TypeVar("T")
Shape = tuple[int, ...]

Lend = Callable[[], "torch.Tensor"]
"""Lends memory of a piece's shape, the same one whenever it is asked."""


class PieceBuffer:
    """Memory for one piece, borrowed when it is first asked for."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype, device: torch.device, memory: ExitStack
    ) -> None:
        self._shape, self._dtype = shape, dtype
        self._borrowed = memory.enter_context(ExitStack())
        self._host: torch.Tensor | None = None
        self._filled: torch.Tensor | None = None

    def lend(self) -> torch.Tensor:
        """The memory, in the reading thread."""
        if self._host is None:
            self._host = self._borrowed.enter_context(borrow(self._shape, self._dtype))
        return self._host

    def fill(self, fill: Callable[[Lend, T], torch.Tensor], item: T) -> None:
        """Read a piece; called in the reading thread. fill: given what lends the memory."""
        self._filled = fill(self.lend, item)

    def take(self) -> torch.Tensor:
        """The piece, on the device."""
        assert self._filled is not None
        return self._filled

    def give_back(self) -> None:
        """The piece is not used any more; what it was held in may go."""
        self._filled = None

    def end(self) -> None:
        """No piece is read any more: others may borrow the memory."""
        self._host = self._filled = None
        self._borrowed.close()


class PinnedBuffer(PieceBuffer):
    """Pinned memory for one piece, copied to the GPU as soon as it is read."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype, device: torch.device, memory: ExitStack
    ) -> None:
        with torch.inference_mode(False):  # the reading thread is not in that mode
            self._pinned = torch.empty(shape, dtype=dtype, pin_memory=True)
            self._there = torch.empty(shape, dtype=dtype, device=device)
        self._filled = None
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._copied, self._used = torch.cuda.Event(), torch.cuda.Event()

    def lend(self) -> torch.Tensor:
        return self._pinned

    def fill(self, fill: Callable[[Lend, T], torch.Tensor], item: T) -> None:
        self._copied.synchronize()  # the piece before; an event never recorded is over
        super().fill(fill, item)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._used)
            self._on_device().copy_(super().take(), non_blocking=True)
            self._copied.record(self._stream)

    def take(self) -> torch.Tensor:
        torch.cuda.current_stream(self._device).wait_event(self._copied)
        return self._on_device()

    def give_back(self) -> None:
        """The next copy waits for the work on the piece that was queued so far."""
        self._used.record(torch.cuda.current_stream(self._device))

    def _on_device(self) -> torch.Tensor:
        filled = super().take()
        return self._there.view(-1)[: filled.numel()].view(filled.shape)
