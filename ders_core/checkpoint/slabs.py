"""Expert groups read some rows at a time, the next rows while these are worked on.

Buffers are used again and again: fresh memory costs more than reading into it. For a GPU they are
pinned, and the copy to it runs beside the computation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ders_core.checkpoint.groups import ExpertGroup

SLAB_BYTES = 32 << 20
"""Of all experts together: large reads for the disk, and little memory."""
BUFFERS = 3


def slabs(
    group: ExpertGroup, device: torch.device | str = "cpu"
) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows, weights `[K, rows, in]` in storage dtype on `device`) over a group, in order.

    A tensor is overwritten once the next one is asked for. Raises CheckpointError if the file ends
    too early.
    """
    experts, out, width = group.shape
    step = max(1, SLAB_BYTES // max(experts * width * group.dtype.itemsize, 1))
    places = [slice(begin, min(begin + step, out)) for begin in range(0, out, step)]
    count = min(BUFFERS, len(places))
    where = torch.device(device)
    make = _OnGpu if where.type == "cuda" else _Buffer
    shape = (experts, min(step, out), width)
    free = deque(make(shape, group.dtype, where) for _ in range(count))
    reading: deque[tuple[slice, _Buffer, Future[None]]] = deque()
    waiting = iter(places)
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        try:
            while True:
                while free and (rows := next(waiting, None)) is not None:
                    buffer = free.popleft()
                    reading.append((rows, buffer, reader.submit(buffer.fill, group, rows)))
                if not reading:
                    return
                rows, buffer, filled = reading.popleft()
                filled.result()
                yield rows, buffer.take()
                buffer.give_back()
                free.append(buffer)
        finally:
            for _, _, future in reading:
                future.cancel()


class _Buffer:
    """Memory for one slab."""

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        with torch.inference_mode(False):  # the reading thread is not in that mode
            self._host = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self._filled = self._host

    def fill(self, group: ExpertGroup, rows: slice) -> None:
        """Read rows of all experts."""
        experts, _, width = self._host.shape
        count = rows.stop - rows.start
        whole = self._host.view(-1)[: experts * count * width]
        self._filled = whole.view(experts, count, width)
        group.read_into(self._filled, rows)

    def take(self) -> torch.Tensor:
        """The slab, where it is to be worked on."""
        return self._filled

    def give_back(self) -> None:
        """Nobody looks at the slab any more."""


class _OnGpu(_Buffer):
    """Copied to the GPU on a stream of its own, as soon as it is read."""

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape, dtype, device)
        with torch.inference_mode(False):
            self._there = torch.empty(shape, dtype=dtype, device=device)
        self._stream = torch.cuda.Stream(device)
        self._used = torch.cuda.Event()
        self._copied = torch.cuda.Event()
        self._device = device

    def fill(self, group: ExpertGroup, rows: slice) -> None:
        self._copied.synchronize()  # of the slab before; an event never recorded is over
        super().fill(group, rows)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._used)
            self._on_device().copy_(self._filled, non_blocking=True)
            self._copied.record(self._stream)

    def take(self) -> torch.Tensor:
        torch.cuda.current_stream(self._device).wait_event(self._copied)
        return self._on_device()

    def give_back(self) -> None:
        """What was asked of the slab so far must be over before it is overwritten."""
        self._used.record(torch.cuda.current_stream(self._device))

    def _on_device(self) -> torch.Tensor:
        shape = self._filled.shape
        return self._there.view(-1)[: self._filled.numel()].view(shape)
