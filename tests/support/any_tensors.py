"""Named tensors of any dtype, shape and bits, for hypothesis."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SAMPLE_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
]


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda name: name != "__metadata__")


@st.composite
def tensor_sets(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Named tensors of mixed dtypes, odd and empty shapes, with arbitrary bits."""
    tensors: dict[str, torch.Tensor] = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=6, unique=True)):
        dtype = draw(st.sampled_from(SAMPLE_DTYPES))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        count = int(torch.Size(shape).numel())
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        high = 2 if dtype is torch.bool else 256
        bits = torch.randint(
            high, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator
        )
        tensors[name] = bits.view(dtype).reshape(shape)
    return tensors


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equality of dtype, shape and every bit (NaNs included)."""
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and torch.equal(
            left.contiguous().reshape(-1).view(torch.uint8),
            right.contiguous().reshape(-1).view(torch.uint8),
        )
    )


FILES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
