"""Packing, positions and selection against plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.codecs.coding import packing
from ders_core.codecs.coding.packing import pack, packed_bytes, unpack
from ders_core.codecs.coding.positions import (
    decode_fixed,
    decode_shortest,
    encode_fixed,
    encode_shortest,
    fixed_bytes,
    shortest_bytes,
)
from ders_core.codecs.fitting.select import largest

QUICK = settings(max_examples=150, deadline=None)


@st.composite
def values_of_bits(draw: st.DrawFn) -> tuple[int, list[int]]:
    bits = draw(st.integers(1, 40))
    return bits, draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))


@QUICK
@given(case=values_of_bits())
def test_pack_is_bit_planes(case: tuple[int, list[int]]) -> None:
    bits, values = case
    packed = pack(torch.tensor(values, dtype=torch.int64), bits)
    stride = math.ceil(len(values) / 8)
    expected = bytearray(stride * bits)
    for index, value in enumerate(values):
        for bit in range(bits):
            expected[bit * stride + index // 8] |= (value >> bit & 1) << (index % 8)
    assert bytes(packed.tolist()) == bytes(expected)
    assert packed_bytes(len(values), bits) == len(expected)
    assert unpack(packed, bits, len(values), torch.int64).tolist() == values


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_pack_does_not_depend_on_the_chunking(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randint(2**bits, (1003,), generator=torch.Generator().manual_seed(1))
    whole = pack(values, bits)
    monkeypatch.setattr(packing, "CHUNK", 64)
    assert torch.equal(pack(values, bits), whole)
    assert torch.equal(unpack(whole, bits, 1003, torch.int64), values)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_unpack_into_any_integer(dtype: torch.dtype) -> None:
    values = torch.arange(100) % 8
    unpacked = unpack(pack(values, 3), 3, 100, dtype)
    assert unpacked.dtype is dtype
    assert unpacked.tolist() == values.tolist()


@st.composite
def position_sets(draw: st.DrawFn) -> tuple[int, list[int]]:
    size = draw(st.integers(1, 3000))
    kind = draw(st.sampled_from(["few", "many", "run"]))
    if kind == "few":
        chosen = draw(st.sets(st.integers(0, size - 1), max_size=40))
    elif kind == "many":
        chosen = set(range(size)) - draw(st.sets(st.integers(0, size - 1), max_size=40))
    else:
        first = draw(st.integers(0, size - 1))
        chosen = set(range(first, draw(st.integers(first, size))))
    return size, sorted(chosen)


@QUICK
@given(case=position_sets())
def test_positions_round_trip(case: tuple[int, list[int]]) -> None:
    size, positions = case
    sorted_positions = torch.tensor(positions, dtype=torch.int64)
    fixed, shortest = encode_fixed(sorted_positions, size), encode_shortest(sorted_positions, size)
    assert fixed.numel() == fixed_bytes(size, len(positions))
    assert shortest.numel() <= shortest_bytes(size, len(positions))
    for packed, decode in ((fixed, decode_fixed), (shortest, decode_shortest)):
        assert packed.dtype is torch.uint8
        decoded = decode(packed, size, len(positions))
        assert decoded.dtype is torch.int64
        assert decoded.tolist() == positions


@QUICK
@given(size=st.integers(1, 10**12), count=st.integers(0, 10**6))
def test_positions_never_take_more_than_a_bitmap_or_two_bits_over_log(
    size: int, count: int
) -> None:
    count = min(count, size)
    taken = fixed_bytes(size, count)
    assert taken <= math.ceil(size / 8)
    if count:
        low = math.floor(math.log2(size / count))
        planes = math.ceil(count / 8) * low + math.ceil((count + size / 2**low + 2) / 8)
        assert taken <= planes


def test_positions_of_a_large_matrix() -> None:
    size = 58_720_256
    positions = torch.tensor([0, 1, 31_000_000, size - 2, size - 1])
    packed = encode_fixed(positions, size)
    assert packed.numel() < 40
    assert decode_fixed(packed, size, 5).tolist() == positions.tolist()
    assert decode_shortest(encode_shortest(positions, size), size, 5).tolist() == positions.tolist()


def entropy_bytes(size: int, share: float) -> float:
    return size * -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8


@pytest.mark.parametrize("drop", [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999])
def test_positions_are_within_ten_percent_of_the_entropy(drop: float) -> None:
    """Positions drawn at random, by torch's own generator."""
    size = 1 << 20
    count = size - round(drop * size)
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(1))[:count].sort().values
    taken = encode_shortest(drawn, size).numel()
    assert taken <= 1.1 * entropy_bytes(size, count / size)
    assert taken <= fixed_bytes(size, count) + 1


def brute_largest(values: torch.Tensor, count: int) -> list[int]:
    """Stable sort by falling magnitude: ties go to the lowest positions."""
    flat = np.abs(values.reshape(-1).numpy().astype(np.float64))
    return sorted(np.argsort(-flat, kind="stable")[:count].tolist())


@st.composite
def value_lists(draw: st.DrawFn) -> list[float]:
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-45, 3e38, 1.0000001])
    wide = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return draw(st.lists(st.one_of(few, wide), min_size=1, max_size=60))


@QUICK
@given(values=value_lists(), data=st.data())
def test_largest_is_what_sorting_finds(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    tensor = torch.tensor(values, dtype=torch.float32)
    places = largest(tensor, count)
    assert places.dtype is torch.int64
    assert places.tolist() == brute_largest(tensor, count)


@pytest.mark.parametrize("count", [0, 1, 100, 5000, 9999, 10_000])
def test_largest_of_a_matrix(count: int) -> None:
    values = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    assert largest(values, count).tolist() == brute_largest(values, count)
    coarse = (values * 4).round() / 4  # many ties
    assert largest(coarse, count).tolist() == brute_largest(coarse, count)
    assert largest(values.T, count).tolist() == brute_largest(values.T.contiguous(), count)
