"""Tables of a lossless stream's contexts: loops and numpy make the same, and read them alike."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.codecs.coding import plain_tables
from ders_core.codecs.coding.context_tables import FARTHEST
from ders_core.codecs.coding.difference_tables import read_tables, written_tables
from ders_core.codecs.coding.differences import CONTEXTS
from ders_core.codecs.coding.stream import Reader

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
    assert tables.code_bytes.sum() == plain.code_bytes.sum()
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
