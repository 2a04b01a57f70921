"""Compiled loops of `sparse` against the same in plain torch, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import context, gauss

from ders_core.codecs import Sparse
from ders_core.codecs.coding.packing import pack, unpack
from ders_core.codecs.coding.prng import random_positions
from ders_core.codecs.fitting.select import largest
from ders_core.codecs.testing.inputs import DTYPES

T = TypeVar("T")

SPARSE: list[dict[str, Any]] = [
    {"drop_rate": 0.0},
    {"drop_rate": 0.9},
    {"drop_rate": 0.8, "value_bits": 4, "rescale": "least_squares"},
    {"drop_rate": 0.3, "method": "magnitude"},
    {"drop_rate": 0.97, "method": "magnitude", "positions": "fixed"},
    {"drop_rate": 0.8, "method": "della", "budget": "row", "value_bits": 8},
    {"pattern": "2:4"},
    {"pattern": "1:16", "value_bits": 8},
    {"drop_rate": 0.9, "gain": "auto"},
]


def plainly(work: Callable[[], T]) -> T:
    with patch("ders_core.compute.kernels._installed", return_value=False):
        return work()


@pytest.mark.parametrize("fields", SPARSE, ids=lambda fields: "-".join(map(str, fields.values())))
@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(0, 5), (5, 0), (1, 1), (37, 1), (13, 29), (8, 131), (40, 64)]),
    dtype=st.sampled_from(DTYPES),
    is_grid=st.booleans(),
)
def test_the_codec(
    fields: dict[str, Any], seed: int, shape: tuple[int, int], dtype: torch.dtype, is_grid: bool
) -> None:
    """Bases with zeros of both signs; equal magnitudes; matrices that lie across memory."""
    codec = Sparse(**fields)
    base = gauss(shape, seed + 2, 0.1).to(dtype)
    base[:, ::3] = -0.0
    delta = gauss(shape, seed, 1e-2)
    delta = (delta * 200).round() / 256 if is_grid else delta
    weight = (base.float() + delta).to(dtype)

    def round_trip(weight: torch.Tensor, base: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = codec.pack(weight, base, context(dtype))
        synthesized = codec.unpack(parts, base, context(dtype))
        whole = torch.int32 if dtype == torch.float32 else torch.int16
        decoded = codec.decode(parts, shape, context(dtype))
        return {**parts, "weight": synthesized.contiguous().view(whole), "delta": decoded}

    wanted = plainly(lambda: round_trip(weight, base))
    across = weight.T.contiguous().T, base.T.contiguous().T
    for found in (round_trip(weight, base), round_trip(*across)):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in found)


@pytest.mark.parametrize(
    ("size", "count"),
    [
        *((1, 1), (2, 2), (3, 3), (5, 4), (33, 33), (1000, 999), (4097, 4097), (2**20 - 1, 3000)),
        *((2**20, 3000), (2**20 + 1, 300_000), (2**31 - 1, 2000), (2**31 + 5, 500), (2**33, 500)),
    ],
)
def test_positions(size: int, count: int) -> None:
    """Also of sizes just beyond a power of two, of which nearly half go through again, and of
    sizes that need more than 31 bits, for which there is no loop."""
    found = random_positions(size, count, 7)
    assert torch.equal(found, plainly(lambda: random_positions(size, count, 7)))
    assert found.unique().numel() == count


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(
        st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -3e38]), st.floats(-9, 9, width=32)
        ),
        min_size=1,
        max_size=60,
    ),
    data=st.data(),
)
def test_the_largest(values: list[float], data: st.DataObject) -> None:
    """Of equal ones the first."""
    whole, count = torch.tensor(values), data.draw(st.integers(0, len(values)))
    found = largest(whole, count)
    assert torch.equal(found, plainly(lambda: largest(whole, count)))
    order = whole.abs().sort(descending=True, stable=True).indices[:count]
    assert torch.equal(found, order.sort().values)


@settings(deadline=None, max_examples=40)
@given(bits=st.integers(0, 12), count=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_bit_planes_of_wide_integers(bits: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2**bits, (count,), generator=generator)
    packed = pack(values, bits)
    assert torch.equal(packed, plainly(lambda: pack(values, bits)))
    back = unpack(packed, bits, count, torch.int64)
    assert back.dtype == torch.int64
    assert torch.equal(back, values)


def test_too_few_bytes_are_not_read_beyond() -> None:
    """Loops do not check indices: what is too short for them goes the plain way, and is refused."""
    packed = pack(torch.ones(64, dtype=torch.uint8), 4)
    with pytest.raises(RuntimeError):
        unpack(packed[:-1], 4, 64, torch.uint8)
