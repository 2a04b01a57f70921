"""The map of a pair shows the sums that it was given, at their places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ders_core import figures
from ders_core.analysis.pair_difference import PairDifference, pair_difference
from ders_core.packed.open import open_checkpoint


@pytest.fixture
def found() -> PairDifference:
    blocks = np.array([[1.0, 3.0], [0.0, 8.0], [4.0, 4.0]])
    return PairDifference(
        blocks=blocks,
        rows=np.array([1.0, 3.0, 2.0, 6.0, 8.0]),
        columns=np.array([2.0, 3.0, 15.0]),
        row_edges=np.array([0, 2, 4, 5]),
        column_edges=np.array([0, 2, 3]),
        energies=(100.0, 80.0),
    )


def test_colours_are_energy_an_entry_times_an_even_share(found: PairDifference) -> None:
    heat, columns, rows = figures.pair_blocks(found, 3, 7).data
    even = 20 / 15
    expected = found.blocks / np.array([[4, 2], [4, 2], [2, 1]]) / even
    told = np.array(heat.customdata)
    np.testing.assert_allclose(told[..., 0].astype(float), expected)
    shown = 10 ** np.array(heat.z)
    np.testing.assert_allclose(shown[expected > 0], expected[expected > 0])
    assert shown[1, 0] == pytest.approx(expected.max() / 1000)
    assert told[2, 0, 1:].tolist() == ["4", "0–1"]
    assert (list(heat.x), list(heat.y)) == ([0.5, 2.0], [0.5, 2.5, 4.0])
    np.testing.assert_allclose(columns.y, np.array([2.5, 15]) / (20 / 3))
    np.testing.assert_allclose(rows.x, np.array([2, 4, 8]) / 4)


def test_the_table_has_every_block(found: PairDifference) -> None:
    table = figures.pair_table(found)
    assert table["energy"].sum() == found.total == 20
    last = table.iloc[-1].to_dict()
    assert (last["row"], last["row_end"], last["column"], last["column_end"]) == (4, 5, 2, 3)
    assert (last["energy"], last["times_even"]) == (4, 3)


def test_two_that_are_the_same(mixtral_dir: Path) -> None:
    same = pair_difference(open_checkpoint(mixtral_dir).group(0, "up"), 1, 1)
    heat = figures.pair_blocks(same, 1, 1).data[0]
    assert np.array(heat.z).max() == 0
    assert heat.zmin < 0 < heat.zmax
