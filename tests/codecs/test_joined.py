"""Tensors that are joined in memory come back, whatever their dtypes and sizes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ders_core.codecs.coding.joined import ALIGNED, join, joined_bytes, split
from ders_core.files.spec import TensorSpec

DTYPES = (torch.uint8, torch.int64, torch.float32, torch.bfloat16)


@given(sizes=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(DTYPES)), max_size=6))
def test_they_come_back(sizes: list[tuple[int, torch.dtype]]) -> None:
    """Also with empty ones between them; and gaps hold zeros."""
    tensors = [torch.full((count,), 77, dtype=dtype) for count, dtype in sizes]
    specs = [TensorSpec.like(tensor) for tensor in tensors]
    joined = join(tensors)
    assert len(joined) == joined_bytes(specs)
    assert len(joined) % ALIGNED == 0
    found = split(joined, specs)
    assert all(torch.equal(one, other) for one, other in zip(found, tensors, strict=True))
    assert int(joined.sum()) == sum(int(each.view(torch.uint8).sum()) for each in tensors)
