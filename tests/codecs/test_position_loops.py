"""Compiled loops of bitmaps and Rice codes against the same in plain torch and numpy, bit by bit,
and against Rice's code written down letter by letter."""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.codecs.coding import bitmaps, positions, rice
from ders_core.codecs.coding.packing import packed_bytes, unpack
from ders_core.errors import CodecError

NO_COMPILER = patch("ders_core.compute.kernels._installed", return_value=False)
LOW_BITS = (0, 1, 5, 8, 9)
"""Of 9, no loops are for."""


def drawn(seed: int, size: int, share: float) -> torch.Tensor:
    chosen = np.random.default_rng(seed).random(size) < share
    return torch.from_numpy(np.flatnonzero(chosen))


sets = st.builds(
    drawn,
    st.integers(0, 2**32),
    st.sampled_from((1, 7, 64, 65, 1000, 4099)),
    st.sampled_from((0.002, 0.1, 0.5, 0.97, 1.0)),
)


@settings(deadline=None, max_examples=60)
@given(chosen=sets, low_bits=st.sampled_from(LOW_BITS))
def test_rice(chosen: torch.Tensor, low_bits: int) -> None:
    count = len(chosen)
    if not count:
        return
    fast = rice.encode(chosen, low_bits)
    with NO_COMPILER:
        slow = rice.encode(chosen, low_bits)
        back = rice.decode(fast, low_bits, count)
    assert torch.equal(fast, slow)
    decoded = rice.decode(fast, low_bits, count)
    assert decoded is not None
    assert back is not None
    assert decoded.tolist() == back.tolist() == chosen.tolist()
    # by hand
    gaps = np.diff(chosen.numpy(), prepend=-1) - 1
    unary = "".join("0" * (gap >> low_bits) + "1" for gap in gaps.tolist())
    split = packed_bytes(count, low_bits)
    bits = unpack(fast[split:], 1, 8 * (len(fast) - split), torch.uint8)
    assert "".join(map(str, bits.tolist())).rstrip("0") == unary
    assert rice.unary_length(chosen, low_bits) == len(unary)
    low = unpack(fast[:split], low_bits, count, torch.int64)
    assert low.tolist() == (gaps % 2**low_bits).tolist()


@settings(deadline=None, max_examples=60)
@given(chosen=sets, more=st.integers(0, 9), most=st.integers(0, 5000))
def test_bitmaps(chosen: torch.Tensor, more: int, most: int) -> None:
    size = (int(chosen[-1]) if len(chosen) else 0) + 1 + more
    fast = bitmaps.bitmap_of(chosen, size)
    found = bitmaps.positions_in(fast, size, most)
    with NO_COMPILER:
        assert torch.equal(fast, bitmaps.bitmap_of(chosen, size))
        assert torch.equal(found, bitmaps.positions_in(fast, size, most))
    assert found.tolist() == chosen[:most].tolist()
    bits = np.unpackbits(fast.numpy(), bitorder="little")
    assert np.flatnonzero(bits).tolist() == chosen.tolist()


@settings(deadline=None, max_examples=150)
@given(
    stream=st.binary(min_size=0, max_size=40),
    form=st.integers(0, 12),
    size=st.integers(1, 200),
    count=st.integers(1, 60),
    fixed=st.booleans(),
)
def test_strange_bytes_are_refused_alike(
    stream: bytes, form: int, size: int, count: int, fixed: bool
) -> None:
    """Or read as the same positions, ascending below the size."""
    count = min(count, size)
    taken = bytearray([form]) + bytearray(stream)
    if fixed:
        taken = bytearray(stream.ljust(positions.fixed_bytes(size, count), b"\0"))
        taken = taken[: positions.fixed_bytes(size, count)]
    packed = torch.frombuffer(taken, dtype=torch.uint8)
    decode = positions.decode_fixed if fixed else positions.decode_shortest
    found: list[list[int] | None] = []
    for way in (nullcontext(), NO_COMPILER):
        with way:
            try:
                found.append(decode(packed, size, count).tolist())
            except CodecError:
                found.append(None)
    fast, slow = found
    assert fast == slow
    if fast is not None:
        assert fast == sorted(set(fast))
        assert 0 <= fast[0] <= fast[-1] < size


@pytest.mark.parametrize("low_bits", [0, 4])
def test_more_or_fewer_gaps_than_promised_are_no_positions(low_bits: int) -> None:
    packed = rice.encode(torch.arange(0, 90, 3), low_bits)
    split, unary = packed_bytes(30, low_bits), packed[packed_bytes(30, low_bits) :]
    for count in (29, 31):
        low = torch.zeros(packed_bytes(count, low_bits), dtype=torch.uint8)
        assert rice.decode(torch.cat([low, unary]), low_bits, count) is None
    assert rice.decode(torch.cat([packed[:split], unary]), low_bits, 30) is not None
