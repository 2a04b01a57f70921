"""Fresh tensors: as they were asked for, whatever memory they come from."""

from __future__ import annotations

import math

import pytest
import torch

from ders_core.compute.buffers import ALIGNED_BYTES, LARGE_BYTES, fresh


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


def test_two_do_not_share_memory() -> None:
    one, other = fresh((LARGE_BYTES,), torch.uint8), fresh((LARGE_BYTES,), torch.uint8)
    one.fill_(1)
    other.fill_(2)
    assert int(one.max()) == 1
