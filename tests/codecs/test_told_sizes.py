"""Sizes that are told from how often each level occurs, beside the streams that are written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.coding.steps import Steps
from ders_core.codecs.coding.told_bytes import told_bytes, unseen_bytes

SHAPE = 90, 110


@dataclass(frozen=True)
class Written:
    """A stream of independent levels: its bytes, and what is told of them."""

    nbytes: int
    by_entropy: float
    by_tables: float


def written(likely: np.ndarray, classed: bool, seed: int) -> Written:
    """likely: how likely each level is."""
    random = np.random.default_rng(seed)
    drawn = random.choice(len(likely), SHAPE, p=likely)
    used, numbers = np.unique(drawn, return_inverse=True)
    levels = used.astype(np.float32)
    steps = None
    if classed:
        steps = Steps(*(random.integers(-4, 5, side) for side in SHAPE))
    arrangement = Arrangement.of(SHAPE, steps)
    arranged = arrangement.arranged(numbers.reshape(SHAPE).astype(np.uint16))
    classes = [arranged[part] for part in arrangement.classes]
    counts = np.stack([np.bincount(each, minlength=len(used)) for each in classes])
    common = int(counts.sum(0).argmax())
    stream = level_stream.write(steps, levels, common, classes, counts).tensor()
    told = level_stream.stream_bytes(steps, counts), told_bytes(steps, counts)
    return Written(stream.numel(), *told)


@pytest.mark.parametrize("classed", [False, True])
@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 40), falling=st.floats(0.02, 1.0), seed=st.integers(0, 2**32 - 1))
def test_a_stream_takes_what_is_told(classed: bool, count: int, falling: float, seed: int) -> None:
    """No more and hardly less: the trials that choose a step have nothing else to go by. A class
    may spare a few bytes of its table."""
    likely = falling ** np.arange(count)
    stream = written(likely / likely.sum(), classed, seed)
    spared = 8 * (1 + (5 if classed else 1))
    assert stream.by_entropy - spared <= stream.nbytes <= stream.by_entropy + 8


@pytest.mark.parametrize("classed", [False, True])
@settings(max_examples=10, deadline=None)
@given(count=st.integers(40, 900), falling=st.floats(0.3, 1.0), seed=st.integers(0, 2**32 - 1))
def test_of_many_levels_tables_tell(classed: bool, count: int, falling: float, seed: int) -> None:
    """Their frequencies are coarse beside their shares."""
    likely = falling ** np.sqrt(np.arange(count))
    stream = written(likely / likely.sum(), classed, seed)
    assert abs(stream.by_tables - stream.nbytes) <= 8


@pytest.mark.parametrize("seed", range(4))
def test_some_rows_tell_what_all_take(seed: int) -> None:
    """Of 640 rows that 40 are a sample of: by their own counts they would take less, as they lack
    levels and factors that others have."""
    random = np.random.default_rng(seed)
    levels = np.rint(random.normal(0, 60, (640, 110))).astype(np.int64)
    rows, columns = random.integers(-4, 5, 640), np.zeros(110, dtype=np.int64)

    def counted(count: int) -> tuple[Steps, np.ndarray]:
        found = np.bincount((levels[:count] - levels.min()).ravel())
        return Steps(rows[:count], columns), found[None]

    def told(steps: Steps, counts: np.ndarray, copies: int) -> float:
        return told_bytes(steps, copies * counts)

    whole, some = told(*counted(640), 1), counted(40)
    plain = told(*some, 16)
    assert plain < 0.985 * whole
    assert 0.99 * whole < plain + 15 * unseen_bytes(*some) < 1.005 * whole
