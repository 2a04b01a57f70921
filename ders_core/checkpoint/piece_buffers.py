"""Memory for the pieces of a stack that are read ahead: reused, and for a GPU pinned."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from ders_core.compute.buffers import borrow
from ders_core.later import torch

T = TypeVar("T")
Shape = tuple[int, ...]


class PieceBuffer:
    """Memory for one piece."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype, device: torch.device, memory: ExitStack
    ) -> None:
        self._borrowed = memory.enter_context(ExitStack())
        self._host = self._filled = self._borrowed.enter_context(borrow(shape, dtype))

    def fill(self, fill: Callable[[torch.Tensor, T], torch.Tensor], item: T) -> None:
        """Read a piece; called in the reading thread."""
        self._filled = fill(self._host, item)

    def take(self) -> torch.Tensor:
        """The piece, on the device."""
        return self._filled

    def give_back(self) -> None:
        """The piece is not used any more; what it was held in may go."""
        self._filled = self._host

    def end(self) -> None:
        """No piece is read any more: others may borrow the memory."""
        del self._host, self._filled
        self._borrowed.close()


class PinnedBuffer(PieceBuffer):
    """Pinned memory for one piece, copied to the GPU as soon as it is read."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype, device: torch.device, memory: ExitStack
    ) -> None:
        with torch.inference_mode(False):  # the reading thread is not in that mode
            self._host = self._filled = torch.empty(shape, dtype=dtype, pin_memory=True)
            self._there = torch.empty(shape, dtype=dtype, device=device)
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._copied, self._used = torch.cuda.Event(), torch.cuda.Event()

    def fill(self, fill: Callable[[torch.Tensor, T], torch.Tensor], item: T) -> None:
        self._copied.synchronize()  # the piece before; an event never recorded is over
        super().fill(fill, item)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._used)
            self._on_device().copy_(self._filled, non_blocking=True)
            self._copied.record(self._stream)

    def take(self) -> torch.Tensor:
        torch.cuda.current_stream(self._device).wait_event(self._copied)
        return self._on_device()

    def give_back(self) -> None:
        """The next copy waits for the work on the piece that was queued so far."""
        self._used.record(torch.cuda.current_stream(self._device))

    def _on_device(self) -> torch.Tensor:
        values = self._there.view(-1)[: self._filled.numel()]
        return values.view(self._filled.shape)
