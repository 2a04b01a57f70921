"""Files hold no positions of entries that were drawn: if one of these changes, every such file is
lost. They are told by `defined`, which knows docs/format.md alone, and not by the package."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from support.defined_draws import defined

from ders_core.codecs.coding.block_draws import BlockDraw

DIGESTS = {
    (2**17 + 5, 1, 7): "c8d02f35c452b30a7234287cca525a6163f710624a2b0de79742c0aa7f19a541",
    (2**17 + 5, 13_108, 42): "781bf8830a35a13eb96ea467afe0257e857f01db44044a3646a5cd561bd249cf",
    (3 * 2**16 + 5, 19_662, 9): "1b60884638429ff4ef4135d3979117802a93fb4d3a569d0fe44ab5d2f4ca57e2",
    (3 * 2**16 + 5, 49_153, 5): "72aae88098e9691f927496538abfadfd808411f97f2135656f4540f8180bfb6f",
    (200_000, 4_001, 2**61): "95b03041161a0ba66d4af87cd16c657d92f2c9cc82655c09cae5ec6d67be7138",
    (200_000, 40_000, 3): "0fb5070efcf27f276b79a917a297a1f0b40f9a4e6cf4d6989589c51a33134dba",
    (573_443, 57_344, 42): "c6e8679d5e21516625f5e690da37de770b2f11bf0821d639a1ac6b2ae25ce5a2",
}
"""(entries, how many are drawn, seed) -> SHA-256 of the positions as int64, little-endian."""


def digest(positions: list[int]) -> str:
    return hashlib.sha256(np.array(positions, "<i8").tobytes()).hexdigest()


@pytest.mark.parametrize("drawn", DIGESTS, ids=str)
def test_positions(drawn: tuple[int, int, int]) -> None:
    positions = torch.cat([*BlockDraw(*drawn).chunks(torch.device("cpu"))]).tolist()
    assert digest(positions) == DIGESTS[drawn]
    assert digest(defined(*drawn)) == DIGESTS[drawn]
