"""Threads that compute in parallel, each on one core.

One thread for each piece of work is faster than many threads for each operation: pieces stay in a
core's cache. And a sum does not depend on how threads split it. How many there are is what torch
would use for one operation: `threads_of_torch` sets it for a piece of work.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from ders_core.later import torch

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

WORKING_BYTES = 1_200_000_000
"""What all pieces that threads work on may hold together, beside what is in memory anyway: two
experts of Mixtral's size at a time, however many threads there are."""


HELPING_BYTES = 150_000_000
"""What threads that help another one with its pieces may hold together: rounding some rows of
Mixtral's widest matrices so that errors make up takes nearly as much."""


class _Given(threading.local):
    """How many threads torch had in this thread before `one_thread`."""

    threads = 1


_given = _Given()


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Make torch use this many threads for one operation, and `side_by_side` as many at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch use one thread. Sums depend on how threads split them; one thread gives the same
    sum on every machine. `side_by_side` still uses as many as there were."""
    before, _given.threads = _given.threads, available_threads()
    try:
        with threads_of_torch(1):
            yield
    finally:
        _given.threads = before


@contextmanager
def shared_out_to(count: int) -> Iterator[None]:
    """In a thread of `one_thread_each`: let work be shared out to so many."""
    before, _given.threads = _given.threads, count
    try:
        yield
    finally:
        _given.threads = before


def available_threads() -> int:
    """How many threads work may be shared out to, in this thread."""
    return max(_given.threads, torch.get_num_threads())


def threads_for(pieces: int, held: int, device: torch.device) -> int:
    """How many of these pieces of work are done at once, at least 1: as many as there are threads
    and as fit into `WORKING_BYTES`; on a GPU one, which keeps it busy.

    held: bytes that one piece holds while it is worked on.
    """
    if device.type != "cpu":
        return 1
    return max(1, min(available_threads(), pieces, WORKING_BYTES // max(held, 1)))


@contextmanager
def side_by_side(device: torch.device, count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `count` threads, by default all that there are. Inside the block, each
    operation runs on one thread. For a GPU the pool has one thread, which keeps the GPU busy: the
    one that is current here."""
    if device.type == "cuda":
        count = 1
    with one_thread(), one_thread_each(count or available_threads(), device) as pool:
        yield pool


def one_thread_each(count: int, device: torch.device) -> ThreadPoolExecutor:
    """A pool whose threads run each operation on one thread, on the GPU that is current here."""
    gpu = torch.cuda.current_device() if device.type == "cuda" else None

    def begin() -> None:
        torch.set_num_threads(1)
        if gpu is not None:
            torch.cuda.set_device(gpu)

    return ThreadPoolExecutor(count, "compute", begin)


@dataclass(frozen=True)
class IdleThreads:
    """Threads that have no task of their own, or none any more, and help those that have. pool,
    count: where they are, and how many may help at once. spare, spare_count: others, that never
    have a task. Whoever asks for help is a thread of the pool, or one beside it that counts."""

    pool: ThreadPoolExecutor
    count: int
    spare: ThreadPoolExecutor | None = None
    spare_count: int = 0
    _asked: _Asked = field(default_factory=lambda: _Asked(), repr=False)

    def help(
        self, work: Callable[[T], object], pieces: Iterable[T], most: int | None = None
    ) -> None:
        """`work(piece)` for each, in this thread and in idle ones, in any order: what a piece gives
        must not depend on the others. most: how many help. Raises what `work` raises, once nobody
        works on a piece."""
        # helpers that never begin stay in queues: they keep neither work nor pieces
        left = deque((work, piece) for piece in pieces)

        def take() -> None:
            while left:
                try:
                    do, piece = left.popleft()
                except IndexError:  # another thread was quicker
                    return
                do(piece)

        several = self.count + self.spare_count if len(left) > 1 else 0
        count = several if most is None else min(several, most)
        helpers = list[Future[None]]()
        try:
            for _ in range(count):
                helpers.append(self._asked.add(take))
            # tasks that the pool was given before come first: until these are begun, nobody of it
            # helps
            for _ in range(self.count if helpers else 0):
                self.pool.submit(self._asked.serve)
            for _ in range(self.spare_count if helpers else 0):
                assert self.spare is not None
                self.spare.submit(self._asked.serve)
            take()
        finally:
            left.clear()
            begun = [helper for helper in helpers if not helper.cancel()]
            wait(begun)
        for helper in begun:
            helper.result()

    def until(self, done: Future[R]) -> None:
        """Help others until this is done, instead of waiting for it."""
        self._asked.serve_until(done)

    def wait_for(self, changed: threading.Condition, is_so: Callable[[], bool]) -> None:
        """Wait, with `changed` acquired once, until something is so of which it is notified; and
        help others meanwhile, with `changed` released."""
        self._asked.serve_until_so(changed, is_so)


class _Asked:
    """Who asks for help: functions that any thread may call, each once."""

    def __init__(self) -> None:
        self._open: deque[tuple[Future[None], Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        # no lock is held while others are: what is notified there, a tensor that goes notifies too
        self._waiting: list[threading.Condition] = []

    def add(self, take: Callable[[], None]) -> Future[None]:
        """The future of one call; cancelled, nobody calls it."""
        helper = Future[None]()
        with self._changed:
            while self._open and self._open[0][0].cancelled():
                self._open.popleft()
            self._open.append((helper, take))
            self._changed.notify_all()
        for changed in tuple(self._waiting):
            with changed:
                changed.notify_all()
        return helper

    def serve(self) -> None:
        """Call the next one, if any is left."""
        with self._changed:
            if not self._open:
                return
            helper, take = self._open.popleft()
        if not helper.set_running_or_notify_cancel():
            return
        try:
            take()
        except BaseException as error:
            helper.set_exception(error)
        else:
            helper.set_result(None)

    def serve_until(self, done: Future[R]) -> None:
        done.add_done_callback(self._tell)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._open or done.done())
            if done.done():
                return
            self.serve()

    def serve_until_so(self, changed: threading.Condition, is_so: Callable[[], bool]) -> None:
        self._waiting.append(changed)
        try:
            while True:
                changed.wait_for(lambda: self._open or is_so())
                if is_so():
                    return
                changed.release()
                try:
                    self.serve()
                finally:
                    changed.acquire()
        finally:
            self._waiting.remove(changed)

    def _tell(self, _: Future[R]) -> None:
        with self._changed:
            self._changed.notify_all()


class _Helped(threading.local):
    """Who helps this thread."""

    idle: IdleThreads | None = None


_helped = _Helped()


@contextmanager
def helped_by(idle: IdleThreads | None) -> Iterator[None]:
    """In this thread: let these help with what `each_piece` works on."""
    before, _helped.idle = _helped.idle, idle
    try:
        yield
    finally:
        _helped.idle = before


def is_helped() -> bool:
    """Whether others may help this thread."""
    return _helped.idle is not None


def each_piece(work: Callable[[T], object], pieces: Iterable[T], held: int = 0) -> None:
    """`work(piece)` for each, in this thread and in those that help it, in any order: what a piece
    gives must depend neither on the others nor on the thread. held: bytes that one piece holds
    while it is worked on, if they are many; helpers hold at most `HELPING_BYTES` for one thread.
    Raises what `work` raises."""
    if _helped.idle is None:
        for piece in pieces:
            work(piece)
    else:
        _helped.idle.help(in_this_mode(work), pieces, HELPING_BYTES // max(held, 1))


def result_of(done: Future[R]) -> R:
    """What another thread computes, which may ask for help meanwhile: this one gives it, if it is
    helped by the same."""
    wait_for(done)
    return done.result()


def wait_for(done: Future[R]) -> None:
    """Wait until this is done or has failed, as `result_of`."""
    if _helped.idle is None:
        wait([done])
    else:
        _helped.idle.until(done)


def wait_until(changed: threading.Condition, is_so: Callable[[], bool]) -> None:
    """Wait, with `changed` acquired once, until something is so of which it is notified; this
    thread helps meanwhile, as in `result_of`."""
    if _helped.idle is None:
        changed.wait_for(is_so)
    else:
        _helped.idle.wait_for(changed, is_so)


def in_this_mode(function: Callable[P, R]) -> Callable[P, R]:
    """The function, to be called by other threads: in torch's inference mode if it is on here."""
    return partial(_in_mode, torch.is_inference_mode_enabled(), function)


def _in_mode(is_on: bool, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    with torch.inference_mode(is_on):
        return function(*args, **kwargs)
