"""How long a stream of levels will be, told from how often each occurs, with the tables that the
coder will make of that. `level_stream.stream_bytes` is quicker, and knows of entropy alone: where
levels are hundreds, frequencies of 1/2^12 code them one or two per cent worse."""

from __future__ import annotations

import math

from ders_core.codecs.coding.frequencies import entropy_bytes
from ders_core.codecs.coding.level_stream import factor_bytes, lanes_log2_of, stream_bytes
from ders_core.codecs.coding.level_tables import LevelTables
from ders_core.codecs.coding.rans import Table
from ders_core.codecs.coding.sections import FEW_OTHERS
from ders_core.codecs.coding.steps import Steps
from ders_core.later import np

FEW_LEVELS = 32
"""Frequencies of so few code them about as well as their entropy says."""

HEAD, OF_LEVEL, OF_STEPS = 5, 4, 1
"""Bytes: what a stream begins with, a level, and the number of classes."""

OF_ALONE, OF_DENSE, OF_RUNS = 2, 1, 7
"""Bytes that a class begins with."""

OF_LANE = 3
"""Bytes that a lane takes beyond what is coded: it has 4, and of these about 1 is of symbols."""


def told_bytes(steps: Steps | None, counts: np.ndarray) -> float:
    """counts: how often each level occurs, int64 `[classes, levels]`."""
    occurring = counts[:, counts.sum(0) > 0]
    if occurring.shape[1] <= FEW_LEVELS:
        return stream_bytes(steps, occurring)
    heads, coded = float(HEAD + OF_LEVEL * occurring.shape[1]), 0.0
    if steps is not None:
        heads += OF_STEPS
        coded += factor_bytes(steps)
    common = int(occurring.sum(0).argmax())
    for of_class in occurring:
        head, symbols = _section(of_class, common)
        heads, coded = heads + head, coded + symbols
    lanes = 1 << lanes_log2_of(round(8 * coded)) if coded else 0
    return heads + coded + OF_LANE * lanes


def unseen_bytes(steps: Steps | None, counts: np.ndarray) -> float:
    """By how much more other rows of the same kind take than these do by their own counts. They
    have levels that are rare here, or do not occur: half a nat for each level but one (Miller
    1955). And factors of their own. steps, counts: as of `told_bytes`."""
    occurring = np.count_nonzero(counts, axis=1)
    of_rows = 0.0
    if steps is not None:
        _, factors = steps.counted[0]
        of_rows = entropy_bytes(factors)
    return of_rows + float((occurring - 1).clip(0).sum()) / (16 * math.log(2))


def _section(counts: np.ndarray, common: int) -> tuple[float, float]:
    """(bytes of its head, bytes of its symbols) of one class."""
    if np.count_nonzero(counts) < 2:
        return OF_ALONE, 0.0
    total = int(counts.sum())
    others = counts.copy()
    others[common] = 0
    count = int(others.sum())
    if count > FEW_OTHERS * total:
        tables = LevelTables.of(counts)
        return OF_DENSE + tables.nbytes, _symbols(counts, tables)
    tables = LevelTables.of(others)
    gaps = entropy_bytes(np.array([count, total - count]))
    return OF_RUNS + tables.nbytes, gaps + _symbols(others, tables)


def _symbols(counts: np.ndarray, tables: LevelTables) -> float:
    """Bytes that levels of these counts take."""
    if tables.rare is None:
        return _coded(counts, tables.usual)
    is_rare = tables.rare.frequencies > 0
    rare = np.where(is_rare, counts, 0)
    usual = np.append(counts - rare, rare.sum())
    return _coded(usual, tables.usual) + _coded(rare, tables.rare)


def _coded(counts: np.ndarray, table: Table) -> float:
    occurring = np.flatnonzero(counts)
    bits = table.bits - np.log2(table.frequencies[occurring])
    return float(counts[occurring] @ bits) / 8
