"""Fresh tensors: as they were asked for, whatever memory they come from."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch

from ders_core.compute import buffers
from ders_core.compute.buffers import (
    ALIGNED_BYTES,
    LARGE_BYTES,
    borrow,
    fresh,
    fresh_array,
    lasting,
    memory_is_reused,
)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.int64])
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7), (LARGE_BYTES // 4, 1), (3, LARGE_BYTES)])
def test_fresh(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = fresh(shape, dtype)
    assert tensor.shape == shape
    assert tensor.dtype is dtype
    assert tensor.is_contiguous()
    assert tensor.data_ptr() % min(ALIGNED_BYTES, tensor.element_size()) == 0
    assert tensor.fill_(3).sum(dtype=torch.float64) == 3 * math.prod(shape)
    if tensor.nbytes >= LARGE_BYTES:
        assert tensor.data_ptr() % ALIGNED_BYTES == 0  # as torch's own


def test_what_lasts_has_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes none that is kept for others, and leaves them none."""
    monkeypatch.setattr(buffers, "_free", [])
    earlier = fresh((LARGE_BYTES,), torch.uint8)
    del earlier
    (kept,) = buffers._free
    tensor = lasting((5, LARGE_BYTES // 8), torch.bfloat16)
    assert (tensor.shape, tensor.dtype) == ((5, LARGE_BYTES // 8), torch.bfloat16)
    assert tensor.is_contiguous()
    assert tensor.data_ptr() % ALIGNED_BYTES == 0
    assert tensor.fill_(3).sum(dtype=torch.float64) == 15 * (LARGE_BYTES // 8)
    row = tensor[4]
    del tensor
    assert row.min() == 3
    del row
    assert [block.ctypes.data for block in buffers._free] == [kept.ctypes.data]
    assert lasting((3,), torch.int64).shape == (3,)


def test_two_do_not_share_memory() -> None:
    one, other = fresh((LARGE_BYTES,), torch.uint8), fresh((LARGE_BYTES,), torch.uint8)
    one.fill_(1)
    other.fill_(2)
    assert int(one.max()) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays_keep_their_memory_through_every_view(dtype: type[np.generic]) -> None:
    """numpy's view of a view keeps the memory below, and not the first view."""
    count = 2 * LARGE_BYTES // np.dtype(dtype).itemsize
    views: list[np.ndarray] = []
    for number in range(1, 9):
        array = fresh_array(count, dtype)
        array[:] = number
        views.append([array, array[1:], array.reshape(2, -1)[1], array.view(np.uint8)][number % 4])
        del array
    for number, view in enumerate(views, start=1):
        expected = np.full(view.nbytes // np.dtype(dtype).itemsize, number, dtype)
        assert view.tobytes() == expected.tobytes()


def test_memory_is_used_again_once_nothing_shares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_free", [])
    tensor = fresh((3, LARGE_BYTES), torch.uint8)
    place, row = tensor.data_ptr(), tensor[1].numpy()[5:]
    row[:] = 7
    del tensor
    other = fresh((3, LARGE_BYTES), torch.uint8)
    assert other.data_ptr() != place  # a row of the first one is still there
    other.fill_(1)
    assert row.min() == 7
    del row
    array = fresh_array(LARGE_BYTES * 5 // 4, np.uint16)  # leaves a sixth of it
    assert array.ctypes.data == place
    del array, other
    with borrow((LARGE_BYTES * 3,), torch.uint8) as borrowed:
        assert borrowed.data_ptr() % ALIGNED_BYTES == 0
        assert len(buffers._free) == 1
    assert fresh((2 * LARGE_BYTES,), torch.uint8).data_ptr() != place  # would leave a third


@pytest.mark.parametrize("size", [LARGE_BYTES, 3 * LARGE_BYTES - 4096, 9 * LARGE_BYTES + 1])
def test_a_little_more_fits_into_the_memory_of_a_little_less(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Parts whose lengths depend on the data differ by little."""
    monkeypatch.setattr(buffers, "_free", [])
    places = set()
    for more in (1, 4000, 2):
        tensor = fresh((size + more,), torch.uint8)
        assert tensor.nbytes == size + more
        places.add(tensor.data_ptr())
        del tensor
    assert len(places) == len(buffers._free) == 1
    assert buffers._free[0].nbytes <= (size + 1) * 9 // 8


def test_no_more_is_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_free", [])
    monkeypatch.setattr(buffers, "KEPT_BYTES", 3 * LARGE_BYTES)
    tensors = [fresh((LARGE_BYTES,), torch.uint8) for _ in range(5)]
    places = [tensor.data_ptr() for tensor in tensors]
    while tensors:
        del tensors[0]
    assert [block.ctypes.data for block in buffers._free] == places[2:]


def test_work_that_repeats_touches_no_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is kept within, as far as it and what is in use stay below the bound, or below what
    was in use before; afterwards as little as always."""
    monkeypatch.setattr(buffers, "_free", [])
    monkeypatch.setattr(buffers, "_account", buffers._Account())
    monkeypatch.setattr(buffers, "KEPT_BYTES", LARGE_BYTES)
    monkeypatch.setattr(buffers, "REUSED_BYTES", 6 * LARGE_BYTES)

    def group() -> set[int]:
        tensors = [fresh((LARGE_BYTES * size,), torch.uint8) for size in (1, 1, 3)]
        assert buffers._account.in_use == 5 * LARGE_BYTES
        return {tensor.data_ptr() for tensor in tensors}

    with memory_is_reused():
        first = group()
        assert {block.ctypes.data for block in buffers._free} == first
        with memory_is_reused():
            assert group() == first
        assert group() == first
        with borrow((LARGE_BYTES * 2,), torch.uint8):  # 7 in all: the oldest of those kept goes
            assert sum(block.size for block in buffers._free) <= 4 * LARGE_BYTES
        group()
        wide = fresh((LARGE_BYTES * 9,), torch.uint8)  # nothing else is kept beside it
        assert not buffers._free
        assert buffers._account.in_use == wide.numel()
        place = wide.data_ptr()
        del wide
        assert fresh((LARGE_BYTES * 9,), torch.uint8).data_ptr() == place
        group()
        assert sum(block.size for block in buffers._free) <= 9 * LARGE_BYTES
    assert sum(block.size for block in buffers._free) <= LARGE_BYTES
    assert (buffers._account.in_use, buffers._account.works) == (0, 0)
    with memory_is_reused():
        group()
        assert buffers._account.most == 5 * LARGE_BYTES  # of this work alone
    with pytest.raises(ZeroDivisionError), memory_is_reused():
        raise ZeroDivisionError
    assert buffers._account.works == 0


def test_memory_that_is_not_there_counts_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a MemoryError, whoever gives it."""
    monkeypatch.setattr(buffers, "_account", buffers._Account())
    shape = (1 << 60,)
    with memory_is_reused():
        for take in (fresh, lasting, borrowed):
            with pytest.raises(MemoryError):
                take(shape, torch.uint8)
        assert (buffers._account.in_use, buffers._account.most) == (0, 0)
        assert fresh((LARGE_BYTES,), torch.uint8).nbytes == buffers._account.most


def borrowed(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with borrow(shape, dtype):
        pytest.fail("there is so much memory")


def test_threads_never_share_memory() -> None:
    """Tensors come and go in several threads; each keeps what its thread wrote."""
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            tensor = fresh((LARGE_BYTES + number,), torch.uint8)
            tensor[::4096] = number
            if int(tensor[::4096].min()) != number or int(tensor[::4096].max()) != number:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
