"""Expert groups read piece by piece; the next pieces are read while one is worked on.

Buffers are reused: fresh memory costs more than reading into it. For a GPU they are pinned, and
copies to it run on a separate stream, in parallel to the computation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

from ders_core.checkpoint.piece_buffers import Lend, PieceBuffer, PinnedBuffer, Shape
from ders_core.checkpoint.side_by_side import SideBySide
from ders_core.checkpoint.stacks import CACHED_SLAB_BYTES, MatrixStack
from ders_core.compute.buffers import borrow
from ders_core.compute.pieces import pieces
from ders_core.compute.pools import in_order
from ders_core.compute.threads import (
    IdleThreads,
    available_threads,
    helped_by,
    in_this_mode,
    one_thread_each,
)
from ders_core.files.cold_reads import as_here
from ders_core.later import torch

T = TypeVar("T")
R = TypeVar("R")

SLAB_BYTES = 32 << 20
"""Of all experts together: large reads for the disk, and little memory."""

SLABS, MATRICES = 3, 2
"""How many pieces are in memory at once."""

CACHED_SLABS = 8
"""The same of smaller ones, each in a thread: more threads wait for memory."""


def slabs(
    stack: MatrixStack, device: torch.device | str = "cpu"
) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows, weights `[K, rows, in]` in storage dtype on `device`) over a group, in order.

    A tensor is overwritten once the next one is requested. Raises CheckpointError if a file ends
    too early.
    """
    experts, out, width = stack.shape
    step = slab_rows(stack, SLAB_BYTES)
    rows = list(pieces(out, step))

    def fill(lend: Lend, part: slice) -> torch.Tensor:
        shape = (experts, part.stop - part.start, width)
        slab = lend().view(-1)[: math.prod(shape)].view(shape)
        stack.read_into(slab, part)
        return slab

    shape = (experts, min(step, out), width)
    return _ahead(rows, fill, shape, stack.dtype.torch, torch.device(device), SLABS)


def slab_rows(stack: MatrixStack, nbytes: int) -> int:
    """How many rows of all matrices take at most so many bytes, at least 1."""
    experts, _, width = stack.shape
    return max(1, nbytes // max(experts * width * stack.dtype.itemsize, 1))


def each_slab(
    stack: MatrixStack, use: Callable[[slice, torch.Tensor], None], threads: int = 1
) -> None:
    """`use(rows, weights [K, rows, in])` over a group on the CPU, as of `slabs`.

    Several threads do that at once, at most CACHED_SLABS, each from reading on, in any order. use:
    must not keep the weights. Raises CheckpointError, and what `use` raises.
    """
    parts = list(pieces(stack.shape[1], slab_rows(stack, CACHED_SLAB_BYTES)))
    for _ in of_slabs(stack, parts, use, min(threads, CACHED_SLABS)):
        pass


def of_slabs(
    stack: MatrixStack,
    parts: Sequence[slice],
    use: Callable[[slice, torch.Tensor], R],
    threads: int = 1,
) -> Generator[R, None, None]:
    """What `use(rows, weights [K, rows, in])` gives for each of these slices of rows, in order; by
    several threads at once, as of `each_slab`."""
    experts, _, width = stack.shape
    most = max(((part.stop - part.start) * experts * width for part in parts), default=0)
    fitting = SLABS * SLAB_BYTES // max(most * stack.dtype.itemsize, 1)
    threads = max(1, min(threads, fitting, len(parts)))
    use = in_this_mode(use)
    with ExitStack() as memory, one_thread_each(threads, torch.device("cpu")) as pool:
        free = deque(
            memory.enter_context(borrow((most,), stack.dtype.torch)) for _ in range(threads)
        )

        def work(part: slice) -> R:
            buffer = free.popleft()
            try:
                count = part.stop - part.start
                slab = buffer[: experts * count * width].view(experts, count, width)
                stack.read_into(slab, part)
                return use(part, slab)
            finally:
                free.append(buffer)

        yield from in_order(pool, as_here(work), parts, 2 * threads)


def matrices(
    stack: MatrixStack,
    device: torch.device | str = "cpu",
    seen: Callable[[torch.Tensor], None] | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """(expert, its weight `[out, in]` in storage dtype on `device`), in order; as `slabs`.

    seen: called with each weight on the CPU as soon as it is read, in order, in the thread that
    reads.
    """
    everyone, shape = range(stack.shape[0]), stack.shape[1:]
    return _ahead(
        everyone, _whole(stack, seen), shape, stack.dtype.torch, torch.device(device), MATRICES
    )


def each_matrix(
    stack: MatrixStack,
    use: Callable[[int, torch.Tensor], R],
    threads: int = 1,
    device: torch.device | str = "cpu",
    seen: Callable[[torch.Tensor], None] | None = None,
) -> Generator[tuple[int, R], None, None]:
    """(expert, `use(expert, its weight)`), in order; weights and `seen` as of `matrices`.

    seen: of several threads, called while an expert is worked on already, or afterwards. use: must
    not change or keep the weight, whose memory the next expert takes. threads: how many experts
    are worked on at once, each in a thread of its own whose operations run on one thread; with 1
    it is the caller's. On a GPU it must be 1. Within `one_thread`, threads that have no expert
    help with what `each_piece` works on. What has begun when the caller leaves is waited for.
    """
    where = torch.device(device)
    with ExitStack() as memory, ExitStack() as working:  # no memory goes while threads work
        spare = _spare(threads, where)
        others = working.enter_context(one_thread_each(spare, where)) if spare else None
        if threads == 1:
            worked = _helped(use, None if others is None else IdleThreads(others, spare))
            for number, weight in matrices(stack, device, seen):
                yield number, worked(number, weight)
            return
        assert where.type == "cpu"
        read, experts = _whole(stack, None), stack.shape[0]
        reader = working.enter_context(ThreadPoolExecutor(1, "read-ahead"))
        pool = working.enter_context(one_thread_each(threads, where))
        buffers = [  # one is read while the others are worked on
            PieceBuffer(stack.shape[1:], stack.dtype.torch, where, memory)
            for _ in range(min(threads + 1, experts))
        ]
        worked = in_this_mode(_helped(use, IdleThreads(pool, threads - 1, others, spare)))
        flow = SideBySide(read, worked, seen, buffers, experts, reader, pool)
        try:
            yield from flow.each(threads)
        finally:
            flow.end()


def _spare(threads: int, device: torch.device) -> int:
    """How many threads there are beside those that experts are worked on in."""
    if device.type != "cpu" or torch.get_num_threads() > 1:  # all take part in each operation
        return 0
    return max(available_threads() - threads, 0)


def _helped(
    use: Callable[[int, torch.Tensor], R], idle: IdleThreads | None
) -> Callable[[int, torch.Tensor], R]:
    """`use`, with these threads to help. No closure: what an error's traceback keeps lets go of
    functions, and not of what these close over."""
    return partial(_use_helped, use, idle)


def _use_helped(
    use: Callable[[int, torch.Tensor], R],
    idle: IdleThreads | None,
    number: int,
    weight: torch.Tensor,
) -> R:
    with helped_by(idle):
        return use(number, weight)


def _whole(
    stack: MatrixStack, seen: Callable[[torch.Tensor], None] | None
) -> Callable[[Lend, int], torch.Tensor]:
    """What reads an expert into memory of its shape, if it is not held. seen: as of `matrices`."""

    def fill(lend: Lend, expert: int) -> torch.Tensor:
        weight = stack.matrices[expert].read_whole(lend)
        if seen is not None:
            seen(weight)
        return weight

    return fill


def _ahead(
    items: Iterable[T],
    fill: Callable[[Lend, T], torch.Tensor],
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    count: int,
) -> Iterator[tuple[T, torch.Tensor]]:
    """(item, its piece) for each item, read ahead by `fill(lend, item)` in a thread.

    fill: given what lends memory of that shape; returns what holds the piece. count: buffers.
    """
    fill = as_here(fill)
    make = PinnedBuffer if device.type == "cuda" else PieceBuffer
    waiting = iter(items)
    reading: deque[tuple[T, PieceBuffer, Future[None]]] = deque()
    with ExitStack() as memory, ThreadPoolExecutor(1, "read-ahead") as reader:
        free = deque(make(shape, dtype, device, memory) for _ in range(count))
        try:
            while True:
                while free and (item := next(waiting, None)) is not None:
                    buffer = free.popleft()
                    reading.append((item, buffer, reader.submit(buffer.fill, fill, item)))
                if not reading:
                    return
                item, buffer, filled = reading.popleft()
                filled.result()
                yield item, buffer.take()
                buffer.give_back()
                free.append(buffer)
        finally:
            for _, _, future in reading:
                future.cancel()
