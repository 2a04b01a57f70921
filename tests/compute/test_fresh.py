"""Memory for new tensors."""

from __future__ import annotations

import pytest
import torch

from ders_core.compute.buffers import fresh


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (3, 0), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.bool])
def test_fresh_tensors_are_contiguous_and_may_be_written_to(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = fresh(shape, dtype)
    assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
    assert tensor.is_contiguous()
    tensor.fill_(1)
    assert bool((tensor == 1).all())
