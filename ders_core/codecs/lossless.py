"""`lossless`: every bit of the experts, predicted from the base and entropy-coded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ders_core.codecs.choice import Choice
from ders_core.codecs.codec import Codec, EncodeContext, Parts, register
from ders_core.codecs.coding.earlier.ans import Model, Stack
from ders_core.codecs.coding.packing import pack, packed_bytes, unpack
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.codecs.statistics import DeltaStatistics, Expected
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import np, torch

CHUNK = 1 << 20
RAW, CODED = 0, 1

CONTEXTS = 16
"""Exponents of the base with separate statistics, from the largest one down; the last one
stands for all smaller ones too."""

FINE = 64
"""Codes to one mean deviation of the differences; finer bits are noise and stored as they are."""

MOST_CODES = 4096
"""Codes in one table; with more of them another low bit is stored as it is."""

WIDEST = 1 << 16
"""Ranges of codes up to this one are counted and looked up by table."""


@dataclass(frozen=True)
class _Table:
    """How differences are coded where the base has one exponent. low: number of low bits that are
    stored as they are. codes: the upper bits that occur, int64, ascending. counts: how often each
    occurs."""

    low: int
    codes: np.ndarray
    counts: np.ndarray

    def nbytes(self, itemsize: int) -> int:
        """Of the table in a stream. itemsize: of a weight."""
        return 4 + 4 + len(self.codes) * (4 + (8 if itemsize == 4 else 4))

    def indices(self, codes: np.ndarray) -> np.ndarray:
        """int32 numbers in the table of `codes` `[n]` that are in it."""
        first, span = int(self.codes[0]), int(self.codes[-1] - self.codes[0]) + 1
        if span > WIDEST:
            places: np.ndarray = np.searchsorted(self.codes, codes)
            return places.astype(np.int32)
        number = np.zeros(span, dtype=np.int32)
        number[self.codes - first] = np.arange(len(self.codes), dtype=np.int32)
        numbers: np.ndarray = number[codes - first]
        return numbers


@register
class Lossless(Codec):
    """Bit for bit the expert, in fewer bytes where it is close to its base.

    Floats are mapped to integers that count them in order; W − W_base is then a small number of
    steps, smaller where the base's exponent is large, so each exponent of the base has statistics
    of its expert. The upper bits of the differences are entropy-coded (ANS), the noise in the lower
    ones is stored as it is. So is a whole expert that would not shrink.
    """

    name: ClassVar[str] = "lossless"
    summary: ClassVar[str] = "Keeps every bit, in fewer bytes where experts are close to the base."
    source: ClassVar[str] = "ANS (arXiv 1311.2540); prediction as in fpzip (Lindstrom 2006)"
    choices: ClassVar[tuple[Choice, ...]] = (Choice("lossless"),)
    lossless: ClassVar[bool] = True
    menu_place: ClassVar[int] = 1
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)

    @property
    def label(self) -> str:
        return "lossless"

    @property
    def ragged(self) -> frozenset[str]:
        return frozenset({"stream"})

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        return {"stream": TensorSpec(Dtype.U8, (1 + math.prod(shape) * dtype.itemsize,))}

    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        expert, start = weight.reshape(-1).cpu(), base.reshape(-1).cpu()
        writer = Writer()
        writer.put([CODED], "<u1")
        top = _top_exponent(start)
        tables = _tables(expert, start, top)
        if sum(table.nbytes(expert.element_size()) for table in tables) >= expert.nbytes:
            return {"stream": _raw(expert).to(weight.device)}
        for table in tables:
            writer.put([table.low, len(table.codes)], "<u4")
            writer.put(table.codes, "<i8" if expert.element_size() == 4 else "<i4")
            writer.put(table.counts, "<u4")
        models = [Model(table.counts) if len(table.codes) else None for table in tables]
        stack = Stack()
        noise: list[list[torch.Tensor]] = []
        for begin in reversed(range(0, expert.numel(), CHUNK)):
            kept: list[torch.Tensor] = []
            differences = _ordered(expert[begin : begin + CHUNK])
            differences -= _ordered(start[begin : begin + CHUNK])
            places = list(_places(start[begin : begin + CHUNK], top))
            for number, place in reversed(list(enumerate(places))):
                model, table = models[number], tables[number]
                if model is None or not place.numel():
                    continue
                steps = differences[place]
                stack.push(table.indices((steps >> table.low).numpy()), model)
                kept.append(pack(steps & ((1 << table.low) - 1), table.low))
            noise.append(kept[::-1])
        words = stack.words()
        writer.put([len(words)], "<u4")
        writer.put(words, "<u4")
        for kept in reversed(noise):
            for piece in kept:
                writer.put(piece.numpy(), "<u1")
        stream = writer.tensor()
        if stream.numel() > expert.nbytes:
            stream = _raw(expert)
        return {"stream": stream.to(weight.device)}

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        reader = Reader(parts["stream"])
        start = base.reshape(-1).cpu()
        expert = torch.empty_like(start)
        form = reader.number("<u1")
        if form == RAW:
            expert.view(torch.uint8).copy_(
                torch.from_numpy(reader.take(expert.nbytes, "<u1").copy())
            )
        elif form == CODED:
            _read(reader, start, expert)
        else:
            raise damaged()
        return expert.view(base.shape).to(base.device)

    def expected(self, statistics: DeltaStatistics) -> Expected:
        return Expected(gain=1.0, noise=0.0)


def _raw(expert: torch.Tensor) -> torch.Tensor:
    """The stream of a flat expert as it is."""
    as_bytes = expert.contiguous().view(torch.uint8)
    return torch.cat([torch.tensor([RAW], dtype=torch.uint8), as_bytes])


def _read(reader: Reader, start: torch.Tensor, expert: torch.Tensor) -> None:
    """Decode the stream into `expert`, flat like the base `start`."""
    top, wide = _top_exponent(start), start.element_size() == 4
    tables = []
    for _ in range(CONTEXTS):
        low, count = reader.number(), reader.number()
        if low > 32:
            raise damaged()
        codes = reader.take(count, "<i8" if wide else "<i4").astype(np.int64)
        tables.append(_Table(low, codes, reader.take(count, "<u4").astype(np.int64)))
    models = [Model(table.counts) if len(table.codes) else None for table in tables]
    stack = Stack(reader.take(reader.number(), "<u4"))
    for begin in range(0, expert.numel(), CHUNK):
        base = start[begin : begin + CHUNK]
        steps = torch.zeros(base.numel(), dtype=torch.int64)
        for number, place in enumerate(_places(base, top)):
            model, table = models[number], tables[number]
            if not place.numel():
                continue
            if model is None:
                raise damaged()
            index = stack.pop(place.numel(), model)
            noise = reader.take(packed_bytes(place.numel(), table.low), "<u1")
            fine = unpack(torch.from_numpy(noise.copy()), table.low, place.numel(), torch.int64)
            steps[place] = (torch.from_numpy(table.codes[index]) << table.low) | fine
        expert[begin : begin + CHUNK] = _unordered(steps + _ordered(base), expert.dtype)


def _integers(itemsize: int) -> torch.dtype:
    """Whole numbers as wide as weights of 2 or 4 bytes."""
    return torch.int16 if itemsize == 2 else torch.int32


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """int64 that count floats in their order; −0 comes just before 0."""
    size = values.element_size()
    bits = values.view(_integers(size)).long()
    return torch.where(bits < 0, -(1 << (8 * size - 1)) - 1 - bits, bits)


def _unordered(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `_ordered`. Raises CodecError for numbers that count no float."""
    half = 1 << (8 * dtype.itemsize - 1)
    if numbers.numel() and (int(numbers.min()) < -half or int(numbers.max()) >= half):
        raise damaged()
    bits = torch.where(numbers < 0, -half - 1 - numbers, numbers)
    return bits.to(_integers(dtype.itemsize)).view(dtype)


def _exponents(values: torch.Tensor) -> torch.Tensor:
    """The exponent field, int64."""
    fraction = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}[values.dtype]
    bits = values.view(_integers(values.element_size())).long()
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


def _counted(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes that occur, int64 ascending, and how often each does."""
    first = int(codes.min())
    if int(codes.max()) - first >= WIDEST:
        occurring, counts = codes.unique(return_counts=True)
        return occurring, counts
    counts = torch.bincount(codes - first)
    occurring = counts.nonzero().flatten()
    return occurring + first, counts[occurring]


def _tables(expert: torch.Tensor, start: torch.Tensor, top: int) -> list[_Table]:
    """The statistics of the differences in each context."""
    distance = torch.zeros(CONTEXTS, dtype=torch.float64)
    count = torch.zeros(CONTEXTS, dtype=torch.int64)
    for begin in range(0, expert.numel(), CHUNK):
        base = start[begin : begin + CHUNK]
        steps = (_ordered(expert[begin : begin + CHUNK]) - _ordered(base)).abs_().double()
        context = _contexts(base, top)
        distance += torch.bincount(context, steps, minlength=CONTEXTS)
        count += torch.bincount(context, minlength=CONTEXTS)
    lows = [
        max(int(math.log2(total / many / FINE)), 0) if many and total / many > FINE else 0
        for total, many in zip(distance.tolist(), count.tolist(), strict=True)
    ]
    while True:
        tallies: list[dict[int, int]] = [{} for _ in range(CONTEXTS)]
        for begin in range(0, expert.numel(), CHUNK):
            base = start[begin : begin + CHUNK]
            steps = _ordered(expert[begin : begin + CHUNK]) - _ordered(base)
            for number, place in enumerate(_places(base, top)):
                if not place.numel():
                    continue
                codes, many = _counted(steps[place] >> lows[number])
                tally = tallies[number]
                for code, times in zip(codes.tolist(), many.tolist(), strict=True):
                    tally[code] = tally.get(code, 0) + times
        crowded = [number for number, tally in enumerate(tallies) if len(tally) > MOST_CODES]
        if not crowded:
            break
        for number in crowded:
            lows[number] += max(math.ceil(math.log2(len(tallies[number]) / MOST_CODES)), 1)
    return [
        _Table(
            low,
            np.array(sorted(tally), dtype=np.int64),
            np.array([tally[code] for code in sorted(tally)], dtype=np.int64),
        )
        for low, tally in zip(lows, tallies, strict=True)
    ]
