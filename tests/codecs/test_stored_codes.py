"""Codes and symbols of one byte against those of two: the same streams, and what they give back."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import gauss

from ders_core.codecs import EncodeContext, Entropy
from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.fitting.rounding import CODES, FARTHEST
from ders_core.codecs.fitting.stored_codes import NEAR, StoredCodes
from ders_core.codecs.testing.inputs import curvature

NO_COMPILER = patch("ders_core.compute.kernels._installed", return_value=False)


def near(most: int) -> AbstractContextManager[object]:
    """Codes farther from zero's take two bytes."""
    return patch("ders_core.codecs.fitting.stored_codes.NEAR", most)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    bits=st.sampled_from((0.1, 0.7, 1.0, 3.0, 5.0, 8.0)),
    rounding=st.sampled_from(("nearest", "unbiased")),
    steps=st.sampled_from(("even", "sensitive")),
    scale=st.floats(1e-6, 1e6),
    outliers=st.integers(0, 5),
)
def test_streams_are_the_same(
    seed: int, bits: float, rounding: str, steps: str, scale: float, outliers: int
) -> None:
    shape = (40, 70)
    delta = gauss(shape, seed, 1.0)
    places = np.random.default_rng(seed).integers(0, delta.numel(), outliers)
    delta.view(-1)[torch.from_numpy(places)] *= 3000.0
    codec = Entropy(bits=bits, rounding=rounding, steps=steps)
    known = EncodeContext(torch.float32, 5, None, curvature(shape))
    base = gauss(shape, seed + 100).bfloat16()
    stream = codec.encode(delta * scale, known)["stream"]
    for most in (0, 3):
        with near(most):
            assert torch.equal(codec.encode(delta * scale, known)["stream"], stream)
    decoded, weight = (
        codec.decode({"stream": stream}, shape, known),
        codec.unpack({"stream": stream}, base, known),
    )
    pieces = codec.unpack_in_pieces({"stream": stream}, base, known)
    assert torch.equal(torch.cat([*pieces]).view(shape), weight)
    with patch("ders_core.codecs.coding.level_stream.symbol_dtype", return_value=np.uint16):
        assert torch.equal(codec.decode({"stream": stream}, shape, known), decoded)
        assert torch.equal(codec.unpack({"stream": stream}, base, known), weight)
    with NO_COMPILER:
        assert torch.equal(codec.encode(delta * scale, known)["stream"], stream)
        assert torch.equal(codec.unpack({"stream": stream}, base, known), weight)


@pytest.mark.parametrize("far", [None, 0, 3], ids=["none", "first", "later"])
def test_codes_become_wider_where_one_is_far(far: int | None) -> None:
    """A few rows at a time; those put before keep their values."""
    shape = (6, 50)
    codes = np.random.default_rng(0).integers(FARTHEST - NEAR, FARTHEST + NEAR + 1, shape)
    codes[0, :2] = FARTHEST - NEAR, FARTHEST + NEAR
    if far is not None:
        codes[far, 7] = FARTHEST + NEAR + 1
    codes = codes.astype(np.uint16)
    stored, counts = StoredCodes(codes.size), np.zeros((1, CODES), np.int64)
    whole = Arrangement.of(shape, None)
    for row in range(shape[0]):
        part = whole.of_rows(slice(row, row + 1))
        stored.put(codes[row], part, part.before[0], counts)
    assert stored.kept.itemsize == (1 if far is None else 2)
    assert np.array_equal(stored.piece(0, codes.size), codes.reshape(-1))
    assert np.array_equal(counts[0], np.bincount(codes.reshape(-1), minlength=CODES))
    assert stored.within() == slice(int(codes.min()), int(codes.max()) + 1)


def test_symbols_take_a_byte_up_to_255_levels() -> None:
    """One more symbol says that a level is rare."""
    for levels, size in ((2, 1), (255, 1), (256, 2)):
        codes = np.arange(4 * levels).astype(np.uint16) % levels
        counts = np.full((1, levels), 4)
        table = np.linspace(-1, 1, levels).astype(np.float32)
        shape = (4, levels)
        stream = level_stream.write(None, table, 0, [codes], counts).tensor()
        entries = level_stream.read(stream, shape)
        assert entries.room.symbols.itemsize == size
        assert np.array_equal(entries.matrix().numpy(), table[codes].reshape(shape))
