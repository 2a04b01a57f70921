"""A stream of codes with one table: what each code stands for, and how often it occurs."""

from __future__ import annotations

from ders_core.codecs.coding.ans import Model, Stack, code_bytes
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.later import np, torch

COUNTED = 4 + 4
"""Bytes of the table for each code: its level in float32, and how often it occurs."""

LEAST_BYTES = 4 + COUNTED
"""Of a stream of zeros."""


def stream_bytes(counts: np.ndarray, slack: float = 1.0) -> float:
    """Bytes of a stream with these counts `[codes]`, including the last words of the coder. slack:
    what the coder takes for each bit of entropy."""
    codes = int((counts > 0).sum())
    return 4 + codes * COUNTED + slack * code_bytes(counts) + 8 * (codes > 1)


def write(levels: np.ndarray, numbers: np.ndarray, counts: np.ndarray) -> torch.Tensor:
    """uint8 `[n]`. levels: float32, of the codes that occur. counts: how often each does. numbers:
    which of them each entry has, int32 `[entries]`."""
    writer = Writer()
    writer.put([len(levels)], "<u4")
    writer.put(levels, "<f4")
    writer.put(counts, "<u4")
    if len(levels):
        stack = Stack()
        stack.push(numbers, Model(counts))
        writer.put(stack.words(), "<u4")
    return writer.tensor()


def read(stream: torch.Tensor, size: int) -> torch.Tensor:
    """The levels of `size` entries, float32 on the CPU. Raises CodecError for what no stream can
    hold."""
    reader = Reader(stream)
    count = reader.number()
    levels = torch.from_numpy(reader.take(count, "<f4").copy())
    counts = reader.take(count, "<u4").astype(np.int64)
    if counts.sum() != size or not bool(torch.isfinite(levels).all()):
        raise damaged()
    if not size:
        return torch.zeros(0)
    index = Stack(reader.rest("<u4")).pop(size, Model(counts))
    return levels.index_select(0, torch.from_numpy(index))
