"""Files hold no positions of entries that were drawn: if one of these changes, every such file is
lost. They are told by `defined`, which knows docs/format.md alone, and not by the package."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from support.defined_draws import defined

from ders_core.codecs.coding.block_draws import BlockDraw

DRAWN = [
    (2**17 + 5, 1, 7),
    (2**17 + 5, 13_108, 42),
    (3 * 2**16 + 5, 19_662, 9),
    (3 * 2**16 + 5, 49_153, 5),
    (200_000, 4_001, 2**61),
    (200_000, 40_000, 3),
]
"""(entries, how many are drawn, seed): several blocks, the last of which is longer."""

LARGE = (573_443, 57_344, 42)
DIGEST = "c6e8679d5e21516625f5e690da37de770b2f11bf0821d639a1ac6b2ae25ce5a2"
"""SHA-256 of the positions of `LARGE`, as int64, little-endian."""


@pytest.mark.parametrize("drawn", [*DRAWN, LARGE], ids=str)
def test_positions(drawn: tuple[int, int, int]) -> None:
    positions = torch.cat([*BlockDraw(*drawn).chunks(torch.device("cpu"))])
    assert positions.tolist() == defined(*drawn)


def test_the_definition_stays() -> None:
    positions = np.array(defined(*LARGE), "<i8")
    assert hashlib.sha256(positions.tobytes()).hexdigest() == DIGEST
