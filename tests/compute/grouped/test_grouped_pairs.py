"""Blocks of pairs that have one expert."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ders_core.compute.grouped.blocks import SIZE, PairBlocks


@given(
    chosen=st.lists(st.integers(-1, 5), max_size=70),
    experts=st.integers(1, 5),
)
def test_every_pair_is_in_one_block_of_its_expert(chosen: list[int], experts: int) -> None:
    """Against going through pairs one by one; numbers that no expert has are in none."""
    blocks = PairBlocks.of(torch.tensor(chosen, dtype=torch.int64), experts)
    assert blocks.pairs.shape == (len(blocks.experts), SIZE)
    met: list[tuple[int, int]] = []
    for expert, pairs in zip(blocks.experts.tolist(), blocks.pairs.tolist(), strict=True):
        members = [pair for pair in pairs if pair >= 0]
        assert members == sorted(members)
        assert bool(members) == (expert >= 0)
        met += [(expert, pair) for pair in members]
    expected = [(expert, pair) for pair, expert in enumerate(chosen) if 0 <= expert < experts]
    assert sorted(met) == sorted(expected)
