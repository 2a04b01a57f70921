"""Reused memory: touching fresh pages costs more than most computations on them."""

from __future__ import annotations

import ctypes
import math
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from weakref import finalize

from ders_core.later import np, torch

LARGE_BYTES = 1 << 22
"""From here on memory is the system's own, in large pages where it has them."""

ALIGNED_BYTES = 64

STEP_BYTES = 1 << 21
"""Large memory is taken in such steps, or in eighths of its size where these are smaller, so that
what is asked for next fits into it if it takes a little more. It is the size of a large page."""

KEPT_BYTES = 1 << 28
"""How much returned memory is kept for the next borrower, at most."""

REUSED_BYTES = 900_000_000
"""Within `memory_is_reused`: how much is in use and kept, both together, unless more was in use.
Two experts of Mixtral's size take about as much while they are encoded."""

KEPT_SMALL_BYTES = 8 << 20
"""glibc keeps freed blocks of up to this size once one block of this size was freed. It returns
larger blocks to the system, which hands them out again page by page."""

ARENA_MAX, ARENAS = -8, 2
"""glibc's name for the number of arenas, each of which keeps freed blocks, and that number."""


def fresh(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """An uninitialised tensor. On the CPU a large one has memory of an earlier one that is gone, or
    large pages where the system has them: to touch 4 KiB at a time for the first time takes longer
    than most loops do."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_BYTES or torch.device(device).type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return reused(shape, dtype)


def reused(
    shape: Sequence[int], dtype: torch.dtype, gone: Callable[[], None] | None = None
) -> torch.Tensor:
    """As `fresh` on the CPU, however small: for many tensors that go one by one while as many of
    the same size come. The allocator gives the memory of small ones to others. gone: called, by any
    thread, once nothing shares the memory and it is there for others."""
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(_kept(size, gone)).view(dtype).view(tuple(shape))


def fresh_array(count: int, dtype: type[np.generic]) -> np.ndarray:
    """As `fresh`: a numpy array `[count]`."""
    size = count * np.dtype(dtype).itemsize
    if size < LARGE_BYTES:
        return np.empty(count, dtype)
    # of a tensor: views of an array that is a view itself do not keep that one, but what is below
    array: np.ndarray = torch.from_numpy(_kept(size)).numpy()
    return array.view(dtype)


def lasting(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """As `fresh`, for what is held for long: its memory is not shared with what comes later."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_BYTES or torch.device(device).type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return torch.from_numpy(_aligned(size)).view(dtype).view(tuple(shape))


_lock = threading.RLock()  # a tensor may go while it is held
_free: list[np.ndarray] = []


@dataclass
class _Account:
    """in_use: bytes that were taken and not given back. works: how many calls of `memory_is_reused`
    have not ended. most: bytes that were in use at once since the first of these began. elsewhere:
    bytes that the allocator gives out meanwhile."""

    in_use: int = 0
    works: int = 0
    most: int = 0
    elsewhere: int = 0


_account = _Account()


@contextmanager
def memory_is_reused() -> Iterator[None]:
    """Within it, memory is kept for the next borrower as long as all of it stays within
    `REUSED_BYTES`, or what was in use at once before, so that work which does the same for each
    group touches no fresh memory after the first. At the end, what is above `KEPT_BYTES` is
    returned."""
    with _lock:
        if not _account.works:
            _account.most = _account.in_use
        _account.works += 1
    try:
        yield
    finally:
        with _lock:
            _account.works -= 1
            _return_surplus()


@contextmanager
def held_elsewhere(nbytes: int) -> Iterator[None]:
    """Within it, keep so many bytes less: about as many, in small blocks, are the allocator's. At
    the end it gives them back to the system."""
    with _lock:
        _account.elsewhere += nbytes
        _return_surplus()
    try:
        yield
    finally:
        with _lock:
            _account.elsewhere -= nbytes
        return_small_blocks()


def return_small_blocks() -> None:
    """Have the allocator return freed blocks to the system, before much memory is taken at once."""
    with suppress(AttributeError, OSError):  # another allocator than glibc's
        ctypes.CDLL(None).malloc_trim(0)


def keep_small_blocks() -> None:
    """Make the allocator keep freed blocks, except for large ones; for all threads together, not
    for each of them."""
    with suppress(AttributeError, OSError):  # another allocator than glibc's
        ctypes.CDLL(None).mallopt(ARENA_MAX, ARENAS)
    torch.empty(KEPT_SMALL_BYTES, dtype=torch.uint8)  # freed immediately


@contextmanager
def borrow(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield an uninitialised CPU tensor; its memory is reused when the block ends."""
    size = math.prod(shape) * dtype.itemsize
    block = _take(size)
    with torch.inference_mode(False):  # whoever reads into it may not be in inference mode
        tensor = torch.from_numpy(block[:size]).view(dtype).view(shape)
    try:
        yield tensor
    finally:
        _give_back(block)


def _kept(size: int, gone: Callable[[], None] | None = None) -> np.ndarray:
    """uint8 `[size]`, whose memory is kept for others once nothing shares it. gone: as of
    `reused`."""
    block = _take(size)
    memory = block[:size]
    finalize(memory, _give_back, block, gone).atexit = False
    return memory


def _take(size: int) -> np.ndarray:
    """uint8 memory, aligned: the smallest kept block that is large enough, and no more than a
    quarter larger, because it may be held for long; or a new one. Raises MemoryError."""
    if size >= LARGE_BYTES:
        step = min(STEP_BYTES, 1 << (size.bit_length() - 4))
        size = -(-size // step) * step
    with _lock:
        fitting = [free for free in _free if size <= free.size <= size + size // 4]
        if fitting:
            best = min(fitting, key=lambda block: block.size)
            _free[:] = [free for free in _free if free is not best]
            _use(best.size)
            return best
        most = _account.most
        _use(size)
        _return_surplus()
    try:
        return _aligned(size)
    except MemoryError:
        with _lock:
            _account.in_use -= size
            _account.most = max(most, _account.in_use)
        raise


def _use(size: int) -> None:
    _account.in_use += size
    _account.most = max(_account.most, _account.in_use)


def _aligned(size: int) -> np.ndarray:
    """New uint8 memory `[size]`. Large memory is the system's own and goes back to it: of what the
    allocator gives, it keeps pieces. Raises MemoryError."""
    if size >= LARGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        return np.frombuffer(_mapped(size), np.uint8)
    whole = np.empty(size + ALIGNED_BYTES, dtype=np.uint8)
    begin = -whole.ctypes.data % ALIGNED_BYTES
    return whole[begin : begin + size]


def _mapped(size: int) -> mmap.mmap:
    """New memory of the system, in large pages where it has them. Raises MemoryError."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # else forked processes share it
    try:
        mapped = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        raise MemoryError(f"the system has no {size} bytes of memory left") from error
    with suppress(OSError):  # a system without large pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def _give_back(block: np.ndarray, gone: Callable[[], None] | None = None) -> None:
    with _lock:
        _account.in_use -= block.size
        _free.append(block)
        _return_surplus()
    if gone is not None:
        gone()


def _return_surplus() -> None:
    """Return the oldest kept blocks to the system, down to what may be kept."""
    most = KEPT_BYTES
    if _account.works:
        most = max(REUSED_BYTES, _account.most) - _account.in_use - _account.elsewhere
    while _free and sum(free.size for free in _free) > most:
        _free.pop(0)
