"""Files hold no positions of entries that were drawn: if one of these changes, every such file is
lost. They were told by `defined`, which knows docs/format.md alone, and not by the package."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from support.defined_draws import defined

from ders_core.codecs.coding.block_draws import BlockDraw

DIGESTS = {
    (2**17 + 5, 1, 7): "",
    (2**17 + 5, 13_108, 42): "",
    (3 * 2**16 + 5, 19_662, 9): "",
    (3 * 2**16 + 5, 49_153, 5): "",
    (200_000, 4_001, 2**61): "",
    (200_000, 40_000, 3): "",
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
