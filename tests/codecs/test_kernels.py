"""Compiled loops against what they stand for in plain torch and numpy, bit by bit."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import gauss

from ders_core.codecs import EncodeContext, Entropy
from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.coding.level_tables import rare_ones
from ders_core.codecs.coding.prng import random_uniform, uniform_of
from ders_core.codecs.coding.rans import symbol_dtype
from ders_core.codecs.coding.steps import Steps
from ders_core.codecs.delta_entries import DifferenceEntries, MatrixEntries
from ders_core.codecs.fitting.counting import arrange_and_count
from ders_core.codecs.fitting.entries import Entries
from ders_core.codecs.fitting.rounding import (
    CODES,
    EXACT_CODES,
    FARTHEST,
    Apart,
    Nearest,
    Unbiased,
)
from ders_core.codecs.fitting.samples import magnitudes
from ders_core.codecs.testing.inputs import curvature
from ders_core.compute import kernels
from ders_core.compute.kernels import differences, grouping
from ders_core.compute.kernels.multiples import BLOCK
from ders_core.compute.pieces import pieces

NO_COMPILER = patch("ders_core.compute.kernels._installed", return_value=False)

ROUNDINGS = (Nearest(0.5), Nearest(0.32), Unbiased(7))
ODD = (0.0, -0.0, 1e-45, -1e-45, 0.5, -1.5, EXACT_CODES, -EXACT_CODES, 3e38, -3e38)


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=repr)
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    count=st.sampled_from((0, 1, 7, BLOCK, 2 * BLOCK + 3)),
    begin=st.sampled_from((0, 5, 2**32 - BLOCK - 20, 2**40 + 3)),
    step=st.floats(2.0**-20, 2.0**20),
    spread=st.sampled_from((0.1, 3.0, 2000.0, 1e7)),
)
def test_rounding(
    rounding: Apart, seed: int, count: int, begin: int, step: float, spread: float
) -> None:
    """Also where the lower half of a place begins anew."""
    random = np.random.default_rng(seed)
    drawn = random.standard_normal(count) * spread * step
    drawn[: len(ODD)] = np.array(ODD[:count]) * step
    with np.errstate(over="ignore"):
        values = torch.from_numpy(drawn.astype(np.float32)).clamp_(-3e38, 3e38)
    assert kernels.takes(values)
    codes = rounding.coded(values, step, begin)
    with NO_COMPILER:
        assert np.array_equal(rounding.coded(values, step, begin), codes)
    assert np.array_equal(codes, rounding.codes(values, step, begin).numpy() + FARTHEST)


def steps_of(random: np.random.Generator, shape: tuple[int, int], spread: float) -> Steps:
    rows, columns = (random.normal(0, spread, length).astype(np.int64) for length in shape)
    return Steps(rows, columns)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from(((1, 1), (3, 500), (40, 70), (0, 4), (5, 0))),
    spread=st.sampled_from((0.0, 3.0, 20.0)),
    rows_each=st.sampled_from((1, 7, 100)),
    largest=st.sampled_from((2, 300, EXACT_CODES, FARTHEST)),
)
def test_arranging_and_counting(
    seed: int, shape: tuple[int, int], spread: float, rows_each: int, largest: int
) -> None:
    """Some rows at a time, against a sort by class, row, exponent of the column, and column."""
    random = np.random.default_rng(seed)
    steps = steps_of(random, shape, spread)
    codes = random.integers(FARTHEST - largest, FARTHEST + largest + 1, shape).astype(np.uint16)
    rows, columns = (each.reshape(-1) for each in np.indices(shape))
    classes = steps.classes(rows, columns)
    order = np.lexsort((columns, steps.columns[columns], rows, classes))
    wanted = np.zeros((steps.class_count, CODES), dtype=np.int64)
    np.add.at(wanted, (classes, codes.reshape(-1)), 1)
    whole = Arrangement.of(shape, steps)
    for compiled in (True, False):
        with patch("ders_core.compute.kernels._installed", return_value=compiled):
            arranged, counts = np.empty(codes.size, np.uint16), np.zeros_like(wanted)
            for part in pieces(shape[0], rows_each):
                some = whole.of_rows(part)
                begins = whole.begins + whole.before[part.start]
                arrange_and_count(codes[part].reshape(-1), some, begins, arranged, 0, counts)
                assert np.array_equal(some.scattered(some.arranged(codes[part])), codes[part])
            assert np.array_equal(arranged, codes.reshape(-1)[order])
            assert np.array_equal(counts, wanted)


@pytest.mark.parametrize("sensitive", [False, True])
@pytest.mark.parametrize("stride", [1, 3, 29, 211])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_magnitudes_of_each_nth(sensitive: bool, stride: int, dtype: torch.dtype) -> None:
    """Also of more than a row at once."""
    shape = (37, 90)
    random = np.random.default_rng(2)
    weight, base = gauss(shape, 1).to(dtype), gauss(shape, 2).to(dtype)
    steps = steps_of(random, shape, 5.0) if sensitive else None
    entries = Entries(DifferenceEntries(weight, base), steps)
    counts, largest = magnitudes(entries, stride)
    with NO_COMPILER:
        wanted, known = magnitudes(entries, stride)
    assert np.array_equal(counts, wanted)
    assert largest == known
    assert counts.sum() == -(-weight.numel() // stride)
    delta = weight.float() - base.float()
    scaled = delta if steps is None else steps.divided(delta)
    assert largest == float(scaled.view(-1)[::stride].abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("begin", "end"), [(0, 61), (7, 40), (60, 61), (5, 5)])
def test_some_columns_of_a_difference(dtype: torch.dtype, begin: int, end: int) -> None:
    weight, base = gauss((29, 61), 1).to(dtype), gauss((29, 61), 2).to(dtype)
    weight[3] = base[3] = -0.0
    tile = np.full((29, end - begin), 9, dtype=np.float32)
    of_loops = kernels.bits(weight), kernels.bits(base), kernels.kind_of(dtype)
    differences.subtract_columns(*of_loops, begin, tile)
    wanted = weight.float()[:, begin:end] - base.float()[:, begin:end]
    assert np.array_equal(tile.view(np.uint32), wanted.contiguous().numpy().view(np.uint32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rows_in_units_of_their_steps(dtype: torch.dtype) -> None:
    shape, some = (29, 61), slice(4, 22)
    weight, base = gauss(shape, 1).to(dtype), gauss(shape, 2).to(dtype)
    rows, columns = gauss((shape[0],), 3).exp(), gauss((shape[1],), 4).exp()
    wanted = (weight.float() - base.float())[some] * rows[some].unsqueeze(1) * columns
    for entries in (DifferenceEntries(weight, base), MatrixEntries(weight.float() - base.float())):
        for compiled in (True, False):
            with patch("ders_core.compute.kernels._installed", return_value=compiled):
                scaled = torch.empty(some.stop - some.start, shape[1])
                entries.read_scaled(some, rows[some], columns, scaled)
            assert torch.equal(scaled, wanted)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    count=st.sampled_from((0, 1, 63, 64, 1000)),
    largest=st.sampled_from((255, 300)),
    data=st.data(),
)
def test_rare_ones(seed: int, count: int, largest: int, data: st.DataObject) -> None:
    rare = data.draw(st.sets(st.integers(0, largest), min_size=1, max_size=40))
    common, dtype = data.draw(st.integers(0, largest)), symbol_dtype(largest + 1)
    codes = np.random.default_rng(seed).integers(0, largest + 1, count).astype(dtype)
    codes[::2] = common
    which = np.isin(codes, list(rare))
    found = rare_ones(codes, np.array(sorted(rare)), int(which.sum()), common)
    assert np.array_equal(found, codes[which])
    assert found.dtype == dtype


def test_levels_are_means_in_whatever_pieces() -> None:
    """Of the nearest multiples, with classes: one after another in the order of the matrix."""
    delta = gauss((40, 300))
    entries = Entries(MatrixEntries(delta), steps_of(np.random.default_rng(0), (40, 300), 4.0))
    coded = entries.coded_with(0.01, Nearest(0.4))
    levels = entries.levels(coded)
    with NO_COMPILER, patch("ders_core.codecs.fitting.entries.SLAB", 700):
        assert torch.equal(entries.levels(coded), levels)
    assert entries.steps is not None
    scaled = entries.steps.divided(delta).double().numpy().reshape(-1)
    codes = entries.arrangement.scattered(coded.codes.piece(0, delta.numel())).reshape(-1)
    means = [scaled[codes == code].mean() for code in coded.occurring]
    np.testing.assert_allclose(levels.numpy(), means, rtol=1e-6)


@pytest.mark.parametrize("begin", [0, 1, 2**32 - 5, 2**32, 3 * 2**32 - 1000, 2**40 + 17])
def test_draws(begin: int) -> None:
    """Also where the lower half of a counter begins anew."""
    counters = torch.arange(begin, begin + 2001)
    assert torch.equal(random_uniform(2001, 11, begin=begin), uniform_of(counters, 11))


def test_grouping() -> None:
    classes = np.random.default_rng(0).integers(0, 6, 5000).astype(np.uint8) * 2
    begins = np.cumsum(np.bincount(classes)) - np.bincount(classes)
    order = np.empty(classes.size, dtype=np.int64)
    grouping.stable_order(classes, begins, order)
    assert np.array_equal(order, np.argsort(classes, kind="stable"))


@pytest.mark.parametrize("rounding", ["nearest", "unbiased"])
@pytest.mark.parametrize("steps", ["even", "sensitive"])
def test_the_same_bytes_without_a_compiler(
    rounding: str, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (48, 80)
    codec = Entropy.model_validate({"bits": 0.7, "rounding": rounding, "steps": steps})
    known = EncodeContext(torch.float32, 3, None, curvature(shape))
    stream = codec.encode(gauss(shape), known)["stream"]
    decoded = codec.decode({"stream": stream}, shape, known)
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    assert torch.equal(codec.encode(gauss(shape), known)["stream"], stream)
    assert torch.equal(codec.decode({"stream": stream}, shape, known), decoded)
