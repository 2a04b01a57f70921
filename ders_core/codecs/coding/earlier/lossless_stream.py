"""Every bit of an expert: one table for each exponent of the base, one after another in a piece."""

from __future__ import annotations

from collections.abc import Iterator

from ders_core.codecs.coding.earlier.ans import Model, Stack
from ders_core.codecs.coding.packing import packed_bytes, unpack
from ders_core.codecs.coding.stream import Reader, damaged
from ders_core.later import np, torch

CHUNK = 1 << 20

CONTEXTS = 16
"""Exponents of the base with separate statistics, from the largest one down; the last one
stands for all smaller ones too."""


def read(reader: Reader, start: torch.Tensor, expert: torch.Tensor) -> None:
    """Decode the stream into `expert`, flat like the base `start`."""
    top, wide = _top_exponent(start), start.element_size() == 4
    tables = []
    for _ in range(CONTEXTS):
        low, count = reader.number(), reader.number()
        if low > 32:
            raise damaged()
        codes = reader.take(count, "<i8" if wide else "<i4").astype(np.int64)
        counts = reader.take(count, "<u4").astype(np.int64)
        tables.append((low, codes, Model(counts) if count else None))
    stack = Stack(reader.take(reader.number(), "<u4"))
    for begin in range(0, expert.numel(), CHUNK):
        base = start[begin : begin + CHUNK]
        steps = torch.zeros(base.numel(), dtype=torch.int64)
        for number, place in enumerate(_places(base, top)):
            low, codes, model = tables[number]
            if not place.numel():
                continue
            if model is None:
                raise damaged()
            index = stack.pop(place.numel(), model)
            noise = reader.take(packed_bytes(place.numel(), low), "<u1")
            fine = unpack(torch.from_numpy(noise.copy()), low, place.numel(), torch.int64)
            steps[place] = (torch.from_numpy(codes[index]) << low) | fine
        expert[begin : begin + CHUNK] = _unordered(steps + _ordered(base), expert.dtype)


def _integer_of(size: int) -> torch.dtype:
    """Of so many bytes."""
    return torch.int16 if size == 2 else torch.int32


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """int64 that count floats in their order; −0 comes just before 0."""
    size = values.element_size()
    bits = values.view(_integer_of(size)).long()
    return torch.where(bits < 0, -(1 << (8 * size - 1)) - 1 - bits, bits)


def _unordered(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `_ordered`. Raises CodecError for numbers that count no float."""
    half = 1 << (8 * dtype.itemsize - 1)
    if numbers.numel() and (int(numbers.min()) < -half or int(numbers.max()) >= half):
        raise damaged()
    bits = torch.where(numbers < 0, -half - 1 - numbers, numbers)
    return bits.to(_integer_of(dtype.itemsize)).view(dtype)


def _exponents(values: torch.Tensor) -> torch.Tensor:
    """The exponent field, int64."""
    fraction = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}[values.dtype]
    bits = values.view(_integer_of(values.element_size())).long()
    return (bits >> fraction) & ((1 << (8 * values.element_size() - 1 - fraction)) - 1)


def _top_exponent(values: torch.Tensor) -> int:
    chunks = values.split(CHUNK) if values.numel() else ()
    return max((int(_exponents(part).max()) for part in chunks), default=0)


def _contexts(base: torch.Tensor, top: int) -> torch.Tensor:
    """Which statistics the expert has where the base is this: int64, 0 at the largest exponent."""
    return (top - _exponents(base)).clamp_max_(CONTEXTS - 1)


def _places(base: torch.Tensor, top: int) -> Iterator[torch.Tensor]:
    """Where the base has each exponent, from the largest one down; the last ones together."""
    context = _contexts(base, top)
    small = context.to(torch.uint8).numpy()  # numpy sorts bytes by counting them
    order = torch.from_numpy(small.argsort(kind="stable"))
    yield from order.split(torch.bincount(context, minlength=CONTEXTS).tolist())
