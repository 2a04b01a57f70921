"""Draws in blocks of a matrix, against their definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from support.codec_support import context, gauss
from support.defined_draws import defined

from ders_core.codecs import Sparse
from ders_core.codecs.coding import block_draws
from ders_core.codecs.coding.block_draws import BlockDraw
from ders_core.codecs.coding.prng import expert_seed, random_positions
from ders_core.codecs.held_entries import HeldEntries
from ders_core.codecs.selection import drawn as selection
from ders_core.codecs.selection.placing import scattered
from ders_core.codecs.testing.inputs import DTYPES

T = TypeVar("T")
CPU = torch.device("cpu")


def plainly(work: Callable[[], T]) -> T:
    with patch("ders_core.compute.kernels._installed", return_value=False):
        return work()


def in_blocks_of(values: int) -> Any:
    return patch.object(block_draws, "BLOCK_VALUES", values)


def places_of(size: int, count: int, seed: int) -> list[int]:
    chunks = BlockDraw(size, count, seed).chunks(CPU)
    return [place for chunk in chunks for place in chunk.tolist()]


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    size=st.integers(1, 600),
    seed=st.integers(0, 2**62 - 1),
    block_values=st.sampled_from([16, 64, 100, 128, 1000]),
    chunk=st.sampled_from([7, 1 << 18]),
)
def test_equals_the_definition(
    data: st.DataObject, size: int, seed: int, block_values: int, chunk: int
) -> None:
    count = data.draw(st.integers(0, size))
    with in_blocks_of(block_values), patch.object(block_draws, "CHUNK", chunk):
        places = places_of(size, count, seed)
        assert places == plainly(lambda: places_of(size, count, seed))
    assert places == defined(size, count, seed, block_values)
    assert len(set(places)) == count


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 30)),
    block_values=st.sampled_from([16, 100, 1000]),
    compiled=st.booleans(),
)
def test_some_rows_are_those_of_the_whole(
    data: st.DataObject, shape: tuple[int, int], block_values: int, compiled: bool
) -> None:
    """Though the blocks of other rows are not drawn."""
    size = math.prod(shape)
    count = data.draw(st.integers(0, size))
    first = data.draw(st.integers(0, shape[0]))
    rows = slice(first, data.draw(st.integers(first, shape[0])))

    def check() -> None:
        places = selection.DrawnPlaces(BlockDraw(size, count, 3), CPU)
        values = 1 + torch.arange(count, dtype=torch.float32)
        whole = scattered(values, places, shape)
        assert torch.equal(scattered(values, places, shape, rows), whole[rows])
        assert torch.count_nonzero(whole) == count
        drawn = sum(some.numel() for some in places.between(0, 1)[1])
        assert drawn <= 2 * block_values

    with in_blocks_of(block_values):
        check() if compiled else plainly(check)


def test_of_one_block_they_are_those_of_the_matrix() -> None:
    for size in (1, 1000, 2 * block_draws.BLOCK_VALUES - 1):
        count = -(-size // 10)
        assert places_of(size, count, 5) == random_positions(size, count, 5).tolist()
    assert places_of(0, 0, 5) == []


def test_sizes_without_loops() -> None:
    """Of more than 31 bits: a few draws, from blocks of half the matrix."""
    size = 2**33 + 12345
    with in_blocks_of(2**32):
        assert places_of(size, 50, 9) == defined(size, 50, 9, 2**32)


def drawn(size: int, count: int, draws: int, block_values: int) -> Any:
    """bool `[draws, size]`."""
    kept = np.zeros((draws, size), bool)
    with in_blocks_of(block_values):
        for number in range(draws):
            kept[number, places_of(size, count, expert_seed(number, 0, "gate", 0))] = True
    return kept


@pytest.mark.parametrize(("size", "count"), [(160, 16), (149, 7), (151, 74)])
def test_every_entry_is_equally_likely(size: int, count: int) -> None:
    """Chi-square over many seeds, which are fixed; blocks of 32, of which the last one is longer.

    With a share s, each entry's count has the variance draws·s·(1 − s), and the entries of a block
    hang together only by their number, as in any draw of so many."""
    draws, share = 2000, count / size
    kept = drawn(size, count, draws, 32)
    assert (kept.sum(1) == count).all()
    seen = kept.sum(0)
    statistic = ((seen - draws * share) ** 2).sum() / (draws * share * (1 - share))
    assert chi2.ppf(1e-4, size - size // 32) < statistic < chi2.ppf(1 - 1e-4, size)
    begins = np.arange(size // 32) * 32
    in_block = np.add.reduceat(kept, begins, axis=1, dtype=int)
    expected = np.diff([*begins, size]) * share
    assert (np.abs(in_block - expected) < 1).all()  # as near to the share as a count can be
    spread = in_block.var(0) / draws
    assert (np.abs(in_block.mean(0) - expected) <= 5 * spread**0.5 + 1e-9).all()


def test_entries_of_a_block_are_independent() -> None:
    """All pairs within blocks of 32, and neighbours in one long draw."""
    draws = 3000
    kept = drawn(64, 8, draws, 32)  # 4 of each block
    pairs = math.comb(32, 2)
    expected = draws * math.comb(4, 2) / pairs
    for block in (kept[:, :32], kept[:, 32:]):
        both = (block.T.astype(int) @ block)[np.triu_indices(32, 1)]
        assert both.sum() == draws * math.comb(4, 2)
        assert ((both - expected) ** 2).sum() / expected < chi2.ppf(1 - 1e-4, pairs - 1)
    across = (kept[:, :32].T.astype(int) @ kept[:, 32:]).ravel()
    expected = draws * 16 / 32**2
    assert ((across - expected) ** 2).sum() / expected < chi2.ppf(1 - 1e-4, 32**2 - 1)


def test_neighbouring_entries_are_independent() -> None:
    """One long draw of many blocks: kept neighbours occur as often as chance has it."""
    size, count = 1 << 20, 1 << 17
    kept = np.zeros(size, bool)
    kept[places_of(size, count, 9)] = True
    share = count / size
    for step in (1, 2, 3, 64, 128, 256, 512, 4096, 1 << 16, 1 << 17):
        both, expected = int((kept[step:] & kept[:-step]).sum()), (size - step) * share**2
        assert abs(both - expected) < 5 * expected**0.5
    for axis in (0, 1):
        lines = kept.reshape(1024, 1024).sum(axis)
        statistic = ((lines - 1024 * share) ** 2).sum() / (1024 * share * (1 - share))
        assert statistic < chi2.ppf(1 - 1e-6, 1023)
    blocks = kept.reshape(16, -1)
    for other in range(1, 16):
        both = int((blocks[0] & blocks[other]).sum())
        assert abs(both - 1024) < 5 * 1024**0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fields", [{}, {"value_bits": 8}, {"rescale": "least_squares"}], ids=str)
def test_the_codec_in_blocks(dtype: torch.dtype, fields: dict[str, Any]) -> None:
    """Loops that read and write block after block, against the same in plain torch and against the
    places from the definition."""
    shape = 37, 41
    base = gauss(shape, 2, 0.1).to(dtype)
    base[:, ::3] = -0.0
    weight = (base.float() + gauss(shape, 1, 1e-2)).to(dtype)
    codec = Sparse(drop_rate=0.8, **fields)
    own = context(dtype, seed=11)

    def round_trip() -> dict[str, torch.Tensor]:
        parts = codec.pack(weight, base, own)
        whole = torch.int32 if dtype == torch.float32 else torch.int16
        synthesized = codec.unpack(parts, base, own).view(whole)
        held = codec.held_parts(parts, shape, own)
        pieces = torch.cat([*codec.unpack_in_pieces(parts, base, own)]).view(whole)
        assert torch.equal(pieces.view(shape), synthesized)
        return {**parts, **{f"held.{name}": part for name, part in held.items()}, "w": synthesized}

    with in_blocks_of(128), patch.object(selection, "PIECE_BLOCKS", 3):
        found, wanted = round_trip(), plainly(round_trip)
        parts = codec.pack(weight, base, own)
        delta = codec.decode(parts, shape, own)
        held = codec.held_form(shape)
        assert isinstance(held, HeldEntries)
        by_row = held.decode(codec.held_parts(parts, shape, own), shape, own)
    assert torch.equal(by_row, delta)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    places = defined(weight.numel(), codec.kept(shape), 11, 128)
    assert set(delta.view(-1).nonzero().view(-1).tolist()) <= set(places)
    if not fields:
        entries = (weight.float() - base.float()).view(-1)[places].to(dtype).float()
        assert torch.equal(delta.view(-1)[places], entries * (weight.numel() / len(places)))


@pytest.mark.gpu
def test_a_gpu_draws_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    draw = BlockDraw(14336 * 40 + 3, 57_344, 42)
    found, wanted = (torch.cat([*draw.chunks(torch.device(name))]) for name in ("cuda", "cpu"))
    assert torch.equal(found.cpu(), wanted)
