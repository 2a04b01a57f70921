"""A stream of codes whose steps differ: factors of rows and columns, and a table for each class of
steps, because coarse steps give zeros and fine ones do not."""

from __future__ import annotations

from collections.abc import Iterator

from ders_core.codecs.coding.earlier.ans import Model, Stack
from ders_core.codecs.coding.steps import LARGEST, MOST_CLASSES, SMALLEST, Steps
from ders_core.codecs.coding.stream import Reader, damaged
from ders_core.compute import kernels
from ders_core.later import np, torch

MOST_LEVELS = 1 << 14


def read(stream: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """All entries, levels times the factors of their steps: float32 `[out, in]` on the CPU. Raises
    CodecError for what no stream can hold."""
    reader = Reader(stream)
    tables = [_take_table(length, reader) for length in shape]
    count, classes = reader.small(2)
    if count > MOST_LEVELS or classes > MOST_CLASSES:
        raise damaged()
    levels = reader.take(count, "<f4")
    counts = reader.small_array(count * classes).reshape(classes, count)
    stack = Stack(reader.rest("<u4"))
    vectors = [_pop(length, *table, stack) for length, table in zip(shape, tables, strict=True)]
    steps = Steps(*vectors)
    if steps.class_count != classes:
        raise damaged()
    entries = np.empty(shape[0] * shape[1], dtype=np.float32)
    for row, places in zip(counts, _members(steps), strict=True):
        used = np.flatnonzero(row)
        if row.sum() != len(places):
            raise damaged()
        if len(places):
            entries[places] = levels[used][stack.pop(len(places), Model(row[used]))]
    decoded = steps.multiply_(torch.from_numpy(entries).view(shape))
    if not bool(torch.isfinite(decoded).all()):
        raise damaged()
    return decoded


def _members(steps: Steps) -> Iterator[np.ndarray]:
    """The places of each class's entries, ascending."""
    rows, columns = np.arange(steps.rows.size), np.arange(steps.columns.size)
    classes = steps.classes(rows[:, None], columns).astype(np.uint8).reshape(-1)
    ends = np.cumsum(np.bincount(classes, minlength=steps.class_count))
    yield from np.split(_order(classes, ends), ends[:-1])


def _order(classes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    if not kernels.takes():
        ordered: np.ndarray = np.argsort(classes, kind="stable")
        return ordered
    from ders_core.compute.kernels import grouping

    order = np.empty(classes.size, dtype=np.int64)
    grouping.stable_order(classes, np.concatenate([[0], ends[:-1]]), order)
    return order


# the factors of rows or columns: their exponents


def _take_table(length: int, reader: Reader) -> tuple[int, np.ndarray]:
    start, span = reader.small(2)
    if start + span > LARGEST - SMALLEST + 1:
        raise damaged()
    counts = reader.small_array(span)
    if counts.sum() != length:
        raise damaged()
    return start + SMALLEST, counts


def _pop(length: int, lowest: int, counts: np.ndarray, stack: Stack) -> np.ndarray:
    used = np.flatnonzero(counts)
    if not length:
        return np.zeros(0, dtype=np.int64)
    popped: np.ndarray = used[stack.pop(length, Model(counts[used]))] + lowest
    return popped
