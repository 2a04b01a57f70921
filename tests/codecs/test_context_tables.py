"""Tables of a lossless stream's contexts: loops and numpy make the same, and read them alike."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import raises_saying

from ders_core.codecs.coding import plain_tables
from ders_core.codecs.coding.context_tables import FARTHEST
from ders_core.codecs.coding.difference_tables import read_tables, written_tables
from ders_core.codecs.coding.differences import CONTEXTS
from ders_core.codecs.coding.frequencies import LOG_BITS, logarithms
from ders_core.codecs.coding.rans import MOST_CELLS
from ders_core.codecs.coding.stream import Reader, Writer
from ders_core.errors import CodecError

WIDTH = 2 * FARTHEST + 1


def drawn(random: np.random.Generator, contexts: int, levels: int, many: int) -> np.ndarray:
    """Counts as of `Base.codes`, of so many contexts; some levels are rare, or do not occur."""
    counts = np.zeros((CONTEXTS, WIDTH), dtype=np.int64)
    for number in random.permutation(CONTEXTS)[:contexts]:
        begin = int(random.integers(0, WIDTH - levels))
        shares = random.random(levels) ** random.integers(1, 40)
        counts[number, begin : begin + levels] = random.poisson(many * shares / shares.sum())
        counts[number, -1] += random.integers(0, 3)
    return counts


def same(one: Any, other: Any) -> bool:
    """Whether all numbers of two data classes are equal, but for room that is not read."""
    pairs = zip(astuple(one), astuple(other), strict=True)
    return all(np.array_equal(ours, theirs) for ours, theirs in pairs)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    contexts=st.integers(0, CONTEXTS),
    levels=st.sampled_from((1, 2, 3, 40, 700, WIDTH - 1)),
    many=st.sampled_from((1, 50, 10**4, 10**7)),
)
def test_loops_make_and_read_the_same(seed: int, contexts: int, levels: int, many: int) -> None:
    random = np.random.default_rng(seed)
    counts = drawn(random, contexts, levels, many)
    lows = random.integers(0, 9, CONTEXTS)
    plain = plain_tables.written_tables(lows, counts.copy())
    tables = written_tables(lows, counts.copy())
    assert tables.head.tobytes() == plain.head.tobytes()
    assert np.array_equal(tables.code_logs, plain.code_logs)
    assert (tables.eighths, tables.takes_bits) == (plain.eighths, plain.takes_bits)
    for name in ("lows", "spans", "noise_bits", "rare_count", "far_count"):
        assert np.array_equal(getattr(tables.split, name), getattr(plain.split, name)), name
    for ours, theirs in ((tables.usual, plain.usual), (tables.rare, plain.rare)):
        assert same(ours, theirs)
    ours_read, theirs_read = (
        Reader(torch.from_numpy(tables.head)),
        Reader(torch.from_numpy(plain.head)),
    )
    again = read_tables(ours_read)
    with patch("ders_core.compute.kernels._installed", return_value=False):
        again_plain = read_tables(theirs_read)
    assert ours_read.left == theirs_read.left == 0
    assert np.array_equal(again.lows, tables.split.lows)
    assert np.array_equal(again.uppers, again_plain.uppers)
    assert np.array_equal(again.rare_uppers, again_plain.rare_uppers)
    for one, other in ((again.usual, again_plain.usual), (again.rare, again_plain.rare)):
        assert same(one, other)
    for written, read in ((tables.usual, again.usual), (tables.rare, again.rare)):
        assert np.array_equal(written.info, read.info)


@given(number=st.integers(1, 2**33))
def test_logarithms_in_integers(number: int) -> None:
    (found,) = logarithms(np.array([number]))
    assert abs(found - math.log2(number) * 2**LOG_BITS) <= 2


@pytest.mark.parametrize("has_loops", [True, False])
def test_more_cells_than_have_numbers_are_refused(has_loops: bool) -> None:
    """Of a stream that has all levels in all contexts, and each of them rare."""
    rare = [2 * 3 + 1] * 4 + [2 * 4 + 1] * (WIDTH - 4)  # 2^14 in all
    full, empty = [0, WIDTH, 0, 0, WIDTH, *rare], [0, 0]

    def cells(contexts: int) -> int:
        writer = Writer()
        writer.put_small(contexts * full + (CONTEXTS - contexts) * empty)
        return read_tables(Reader(writer.tensor())).rare.info.size

    assert CONTEXTS * WIDTH > MOST_CELLS
    with patch("ders_core.compute.kernels._installed", return_value=has_loops):
        assert cells(CONTEXTS - 1) == (CONTEXTS - 1) * WIDTH + 1
        with raises_saying(CodecError, "damaged"):
            cells(CONTEXTS)
