"""Tensors come from a device together, as they were."""

from __future__ import annotations

import pytest
import torch
from support.counted_device import DEVICE, counted_waits

from ders_core.compute import brought as compute_brought
from ders_core.compute.brought import bring_together


@pytest.mark.parametrize("large", [compute_brought.LARGE, 24, 1])
def test_tensors_of_any_dtype_come_as_they_were(
    large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """large: bytes from which on they come alone."""
    monkeypatch.setattr(compute_brought, "LARGE", large)
    tensors = [
        torch.arange(5, dtype=torch.uint8),
        torch.tensor(2.5, dtype=torch.float64),
        torch.empty(0, 3),
        torch.randn(4, 6).t(),
        torch.tensor([True, False, True]),
        torch.randn(3, 5).bfloat16(),
    ]
    with counted_waits() as counted:
        together = bring_together([tensor.to(DEVICE) for tensor in tensors])
    is_large = [tensor.nbytes >= large for tensor in tensors]
    assert counted.total() == sum(is_large) + (not all(is_large))
    for brought, tensor in zip(together, tensors, strict=True):
        assert brought.dtype == tensor.dtype
        assert brought.is_contiguous()
        assert torch.equal(brought, tensor)
    assert bring_together([]) == []
