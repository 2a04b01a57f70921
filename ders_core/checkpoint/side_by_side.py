"""Matrices worked on by several threads while another one reads the next."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, TypeVar

from ders_core.checkpoint.piece_buffers import Lend, PieceBuffer
from ders_core.checkpoint.room import ROOM, working_in
from ders_core.later import torch

R = TypeVar("R")
Reading = Future["PieceBuffer | None"]

UNUSED = 3
"""How many results wait at most for a caller that is busy."""


class _Free:
    """Buffers that are free. users: how many have what is in one before it is free again. uses: how
    often one is taken, all together; what is free after that gives its memory to others."""

    def __init__(self, buffers: Sequence[PieceBuffer], users: int, uses: int) -> None:
        self._users, self._lock = users, threading.Lock()
        self._left = uses - len(buffers)
        self._free: SimpleQueue[PieceBuffer | None] = SimpleQueue()
        self._used: Counter[int] = Counter()
        for buffer in buffers:
            self._free.put(buffer)

    def take(self) -> PieceBuffer | None:
        """Wait for one; None at the end."""
        return self._free.get()

    def give_back(self, buffer: PieceBuffer) -> None:
        """One of its users has done with it."""
        with self._lock:
            self._used[id(buffer)] += 1
            is_free = self._used[id(buffer)] % self._users == 0
            self._left -= is_free
            is_needed = self._left >= 0
        if not is_free:
            return
        if is_needed:
            buffer.give_back()
            self._free.put(buffer)
        else:
            buffer.end()

    def end(self) -> None:
        """Nobody waits any more."""
        self._free.put(None)


class SideBySide(Generic[R]):
    """See `checkpoint.streaming.each_matrix`.

    read: fills memory with a matrix. use, seen: called with each, the second one in order, by the
    thread that reads. buffers: more than there are threads, or one for each matrix. count: how many
    matrices there are. reader, pool: of one thread, and of those that work.
    """

    def __init__(
        self,
        read: Callable[[Lend, int], torch.Tensor],
        use: Callable[[int, torch.Tensor], R],
        seen: Callable[[torch.Tensor], None] | None,
        buffers: Sequence[PieceBuffer],
        count: int,
        reader: ThreadPoolExecutor,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._read, self._use, self._seen = read, use, seen
        self._reader, self._pool = reader, pool
        self._free = _Free(buffers, 1 if seen is None else 2, count)
        self._count = count
        self._running: deque[tuple[int, Reading, Future[R]]] = deque()
        self._unseen: deque[Reading] = deque()
        self._shown: list[Future[None]] = []
        self._turn = ROOM.at_once()

    def each(self, threads: int) -> Generator[tuple[int, R], None, None]:
        """(number, `use(number, matrix)`) in order."""
        begun, count = 0, self._count
        while begun < count or self._running:
            while begun < count and len(self._running) < threads + UNUSED:
                self._begin(begun)
                begun += 1
                # all threads have something to do before the first one is shown
                self._show_all_but(threads - 1)
            first, _, worked = self._running.popleft()
            result = worked.result()
            # what begins once all are shown finds the memory of those that are done with
            if begun == count and len(self._running) <= threads:
                self._show_all_but(0)
            yield first, result
        for showing in self._shown:
            showing.result()

    def end(self) -> None:
        """Begin nothing more, and let nothing wait for room."""
        self._turn.cancel()
        for _, reading, worked in self._running:
            reading.cancel()
            worked.cancel()
        for showing in self._shown:
            showing.cancel()
        # the error of one that nobody asks for any more keeps what it worked on, and this
        for waiting in (self._running, self._unseen, self._shown):
            waiting.clear()
        self._free.end()

    def _begin(self, number: int) -> None:
        reading = self._reader.submit(self._filled, number)
        self._running.append((number, reading, self._pool.submit(self._work, number, reading)))
        if self._seen is not None:
            self._unseen.append(reading)

    def _show_all_but(self, left: int) -> None:
        while len(self._unseen) > left:
            self._shown.append(self._reader.submit(self._show, self._unseen.popleft()))

    def _filled(self, number: int) -> PieceBuffer | None:
        buffer = self._free.take()
        if buffer is not None:
            buffer.fill(self._read, number)
        return buffer

    def _work(self, number: int, reading: Reading) -> R:
        buffer = reading.result()
        assert buffer is not None
        try:
            with working_in(self._turn):
                return self._use(number, buffer.take())
        finally:
            self._free.give_back(buffer)

    def _show(self, reading: Reading) -> None:
        buffer = reading.result()
        assert buffer is not None
        assert self._seen is not None
        try:
            self._seen(buffer.take())
        finally:
            self._free.give_back(buffer)
