"""A stream of codes with one table: what each code stands for, and how often it occurs."""

from __future__ import annotations

from ders_core.codecs.coding.earlier.ans import Model, Stack
from ders_core.codecs.coding.stream import Reader, damaged
from ders_core.later import np, torch


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
