"""A stream of codes whose steps differ: factors of rows and columns, and a table for each class of
steps, because coarse steps give zeros and fine ones do not."""

from __future__ import annotations

from collections.abc import Iterator

from ders_core.codecs.coding.ans import Model, Stack, code_bytes
from ders_core.codecs.coding.steps import LARGEST, MOST_CLASSES, SMALLEST, Counted, Steps
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.compute import kernels
from ders_core.later import np, torch

MOST_LEVELS = 1 << 14


LEAST_BYTES = 40
"""Enough for a stream of zeros with even steps."""


def factor_bytes(steps: Steps) -> float:
    """Bytes of the factors of rows and columns, with their tables."""
    return sum(_table_bytes(counts) + code_bytes(counts) for _, counts in steps.counted)


def stream_bytes(steps: Steps, counts: np.ndarray, slack: float = 1.0) -> float:
    """Bytes of a stream with these counts `[classes, codes]`. slack: what the coder takes for each
    bit of entropy."""
    occurring = counts[:, counts.sum(0) > 0]
    of_counts = float(np.ceil(np.log2(occurring + 1) / 7).clip(1).sum())
    coded = slack * (factor_bytes(steps) + sum(code_bytes(row) for row in occurring))
    return float(3 + 4 * occurring.shape[1] + of_counts + coded + 8)


def write(
    steps: Steps, levels: np.ndarray, numbers: np.ndarray, counts: np.ndarray
) -> torch.Tensor:
    """uint8 `[n]`. levels: float32, of the codes that occur. counts: how often each does in each
    class, `[classes, levels]`. numbers: which of the levels each entry has, int32 `[out · in]`."""
    writer, stack = Writer(), Stack()
    for counted in steps.counted:
        _put_table(counted, writer)
    writer.put_small([len(levels), len(counts)])
    writer.put(levels, "<f4")
    writer.put_small(counts.flatten().tolist())
    members = list(_members(steps))
    for row, places in zip(counts[::-1], members[::-1], strict=True):  # popped in reverse
        used = np.flatnonzero(row)
        if len(used) > 1:
            index = np.zeros(len(row), dtype=np.int32)
            index[used] = np.arange(len(used), dtype=np.int32)
            stack.push(index[numbers[places]], Model(row[used]))
    of_rows, of_columns = steps.counted
    _push(steps.columns, of_columns, stack)
    _push(steps.rows, of_rows, stack)
    writer.put(stack.words(), "<u4")
    return writer.tensor()


def read(stream: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """All entries, levels times the factors of their steps: float32 `[out, in]` on the CPU. Raises
    CodecError for what no stream can hold."""
    reader = Reader(stream)
    tables = [_take_table(length, reader) for length in shape]
    count, classes = reader.small(2)
    if count > MOST_LEVELS or classes > MOST_CLASSES:
        raise damaged()
    levels = reader.take(count, "<f4")
    counts = np.array(reader.small(count * classes), dtype=np.int64).reshape(classes, count)
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
    ends = np.cumsum(np.bincount(steps.classes.numpy(), minlength=steps.class_count))
    yield from np.split(_order(steps.classes, ends), ends[:-1])


def _order(classes: torch.Tensor, ends: np.ndarray) -> np.ndarray:
    if not kernels.takes(classes):
        ordered: np.ndarray = np.argsort(classes.numpy(), kind="stable")
        return ordered
    from ders_core.compute.kernels import grouping

    order = np.empty(classes.numel(), dtype=np.int64)
    grouping.stable_order(classes.numpy(), np.concatenate([[0], ends[:-1]]), order)
    return order


# the factors of rows or columns: their exponents


def _table_bytes(counts: np.ndarray) -> float:
    return 4 + float(np.ceil(np.log2(counts + 1) / 7).clip(1).sum())


def _put_table(counted: Counted, writer: Writer) -> None:
    lowest, counts = counted
    writer.put_small([lowest - SMALLEST, len(counts), *counts.tolist()])


def _take_table(length: int, reader: Reader) -> tuple[int, np.ndarray]:
    start, span = reader.small(2)
    if start + span > LARGEST - SMALLEST + 1:
        raise damaged()
    counts = np.array(reader.small(span), dtype=np.int64)
    if counts.sum() != length:
        raise damaged()
    return start + SMALLEST, counts


def _push(vector: torch.Tensor, counted: Counted, stack: Stack) -> None:
    lowest, counts = counted
    used = np.flatnonzero(counts)
    if len(used) > 1:
        symbols = np.searchsorted(used, (vector - lowest).numpy()).astype(np.int32)
        stack.push(symbols, Model(counts[used]))


def _pop(length: int, lowest: int, counts: np.ndarray, stack: Stack) -> torch.Tensor:
    used = np.flatnonzero(counts)
    if not length:
        return torch.zeros(0, dtype=torch.int64)
    return torch.from_numpy(used[stack.pop(length, Model(counts[used]))] + lowest)
