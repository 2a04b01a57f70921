"""`entropy` deltas in memory: their levels, so that they are multiplied as they are.

A stream is read from its first byte to its last one, and decoding it takes longer than products
with it. A model that computes holds the numbers of levels instead: of the entries alone that do not
have the common level, row by row, where these are few, or of all entries, in as many bits as they
need. Factors of rows and columns stay beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import Field

from ders_core.codecs.codec import DeltaCodec, EncodeContext, MakeWeight, Parts, start_of
from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.joined import join, joined_bytes, split
from ders_core.codecs.coding.packing import pack, packed_bytes
from ders_core.codecs.coding.row_places import low_bits, place_specs, stored_places
from ders_core.codecs.coding.small_codes import pack_small, small_bytes, width_of
from ders_core.codecs.fitting.level_products import (
    MOST_PAIRS,
    DenseLevels,
    LevelMatrix,
    SparseLevels,
)
from ders_core.codecs.routed import CodedExperts, RoutedDeltas, RoutedMatrices
from ders_core.compute import kernels
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch

SPARSE, DENSE, STREAM = 0, 1, 2

MOST_LEVELS = 256
"""A byte tells them apart; with more, a stream stays as it is."""

SPARSE_SHARE = 1 / 3
"""Entries row by row take up to five times as long to multiply as codes, so they are held where
they take at most so much of the memory: as a rule, of streams of up to half a bit an entry."""

HELD, FORM = "held", "form"
"""The parts: what is held, and how (see `Form`)."""


@dataclass(frozen=True)
class Form:
    """How one matrix is held. kind: SPARSE, DENSE or STREAM. bits: of the number of a level. count:
    of entries, of levels, or of bytes, as the kind goes. has_factors: of rows and columns."""

    kind: int
    bits: int
    count: int
    has_factors: bool

    @classmethod
    def of(cls, shape: tuple[int, int], levels: int, others: int, *, has_factors: bool) -> Form:
        """For at most MOST_LEVELS levels. others: entries that do not have the common level."""
        dense = cls(DENSE, max((levels - 1).bit_length(), 1), levels, has_factors)
        sparse = cls(SPARSE, width_of(max(levels - 1, 1)), others, has_factors)
        is_small = sparse.nbytes(shape) <= SPARSE_SHARE * dense.nbytes(shape)
        return sparse if is_small else dense

    def specs(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """What is held one after another, after the form itself."""
        (out, width), steps = shape, {}
        if self.has_factors:
            steps = {
                "rows": TensorSpec(Dtype.F32, (out,)),
                "steps": TensorSpec(Dtype.F32, (width,)),
            }
        levels = TensorSpec(Dtype.F32, (1 << self.bits,))
        if self.kind == STREAM:
            return {"stream": TensorSpec(Dtype.U8, (self.count,))}
        if self.kind == DENSE:
            codes = TensorSpec(Dtype.U8, (packed_bytes(out * width, self.bits),))
            return {"codes": codes, "levels": levels, **steps}
        values = TensorSpec(Dtype.U8, (small_bytes(self.count, self.bits),))
        common = TensorSpec(Dtype.F32, (1,))
        places = place_specs(shape, self.count)
        return {**places, "values": values, "levels": levels, "common": common, **steps}

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Of all of it."""
        return joined_bytes([*self.specs(shape).values()])

    def parts(self, shape: tuple[int, int], tensors: Mapping[str, torch.Tensor]) -> Parts:
        """The form int64 `[4]`, and what it holds, uint8 `[n]`."""
        numbers = [self.kind, self.bits, self.count, int(self.has_factors)]
        held = join([tensors[name] for name in self.specs(shape)])
        return {FORM: torch.tensor(numbers, dtype=torch.int64), HELD: held}

    @classmethod
    def read(cls, parts: Mapping[str, torch.Tensor]) -> Self:
        """Of what `parts` made. The form is on the CPU, so that no device is waited for."""
        kind, bits, count, has_factors = parts[FORM].tolist()
        return cls(kind, bits, count, bool(has_factors))


class HeldLevels(DeltaCodec):
    """What `entropy` deltas of one shape are in memory; in no recipe and no file."""

    name: ClassVar[str] = "levels"
    summary: ClassVar[str] = "Holds the numbers of a stream's levels."
    source: ClassVar[str] = "Elias-Fano (Fano 1971, Elias 1974), for places"
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    of_streams: DeltaCodec = Field(description="what wrote the streams")

    @property
    def label(self) -> str:
        return f"levels of {self.of_streams.label}"

    @property
    def ragged(self) -> frozenset[str]:
        return frozenset({HELD})

    @property
    def host_parts(self) -> frozenset[str]:
        return frozenset({FORM})

    @property
    def is_coded_on_cpu(self) -> bool:
        return False

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        (stream,) = self.of_streams.parts(shape, dtype).values()
        forms = Form(DENSE, 8, MOST_LEVELS, True), Form(STREAM, 8, stream.nbytes, False)
        most = max(form.nbytes(shape) for form in forms)
        return {FORM: TensorSpec(Dtype.I64, (4,)), HELD: TensorSpec(Dtype.U8, (most,))}

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        raise AssertionError("levels are taken from what another codec made")

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        matrix = _matrix(parts, shape)
        if matrix is None:
            return self.of_streams.decode(_streamed(parts, shape), shape, context)
        return matrix.decode()

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        shape = (base.shape[0], base.shape[1])
        make = self.maker(parts, shape, context)
        if make is None:
            return self.of_streams.unpack(_streamed(parts, shape), base, context)
        return make(base, base.dtype)

    def maker(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> MakeWeight | None:
        """None where a stream is held as it is."""
        matrix = _matrix(parts, shape)
        if matrix is None:
            return None

        def make(base: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            return matrix.onto(start_of(base, dtype)).to(dtype)

        return make

    def product(
        self,
        parts: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        shape: tuple[int, int],
        context: EncodeContext,
    ) -> torch.Tensor:
        is_tracked = x.requires_grad and torch.is_grad_enabled()
        matrix = _matrix(parts, shape)
        if matrix is None or is_tracked or not self.multiplies(len(x)):
            return super().product(parts, x, shape, context)
        if not (matrix.takes_loops and kernels.can_run(x.device)):
            return super().product(parts, x, shape, context)
        return matrix.product(x)

    def multiplies(self, tokens: int) -> bool:
        return tokens <= MOST_PAIRS

    def routed(self, coded: CodedExperts) -> RoutedDeltas | None:
        """None if a stream is held as it is."""
        pairs = zip(coded.parts[FORM], coded.pieces[HELD], strict=True)
        found = [_matrix({FORM: form, HELD: held}, coded.shape) for form, held in pairs]
        each = [matrix for matrix in found if matrix is not None and matrix.takes_loops]
        return RoutedMatrices(each, MOST_PAIRS) if len(each) == len(found) else None


def held_levels(stream: torch.Tensor, shape: tuple[int, int]) -> Parts:
    """The parts of `HeldLevels`. Raises CodecError for what no stream can hold."""
    if not level_stream.is_one(stream):  # of an earlier format version
        return _as_it_is(stream, shape)
    entries = level_stream.read(stream, shape)
    levels, common = torch.from_numpy(entries.levels.copy()), entries.common
    if not entries.sections or len(levels) > MOST_LEVELS:
        return _as_it_is(stream, shape)
    numbers = entries.numbers().view(-1).to(torch.uint8)
    is_other = numbers != common
    form = Form.of(shape, len(levels), int(is_other.sum()), has_factors=entries.has_factors)
    if form.kind == DENSE:
        tensors = {"codes": pack(numbers, form.bits)}
    else:
        others = numbers[is_other]
        others -= (others > common).to(torch.uint8)
        tensors = stored_places(is_other.nonzero().view(-1), shape)
        tensors |= {"values": pack_small(others, form.bits), "common": levels[common].view(1)}
        levels = torch.cat([levels[:common], levels[common + 1 :]])
    tensors["levels"] = torch.zeros(1 << form.bits)
    tensors["levels"][: len(levels)] = levels
    if entries.has_factors:
        rows, columns = (torch.from_numpy(each) for each in entries.factors)
        tensors |= {"rows": rows, "steps": columns}
    return form.parts(shape, tensors)


def held_bytes(about: level_stream.About, shape: tuple[int, int]) -> int | None:
    """How long what `held_levels` makes of a stream is, to a hundredth; None where it stays as it
    is. Where entries by row take about SPARSE_SHARE of what codes take, the other form may be
    told."""
    if not 0 < about.levels <= MOST_LEVELS or not shape[0] * shape[1]:
        return None
    form = Form.of(shape, about.levels, about.others, has_factors=about.has_factors)
    return form.nbytes(shape)


def streamed_bytes(length: int, shape: tuple[int, int]) -> int:
    """How long what holds a stream of so many bytes as it is is."""
    return Form(STREAM, 8, length, False).nbytes(shape)


def _as_it_is(stream: torch.Tensor, shape: tuple[int, int]) -> Parts:
    form = Form(STREAM, 8, len(stream), False)
    return form.parts(shape, {"stream": stream.cpu()})


def _streamed(parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The parts of what wrote a stream that is held as it is."""
    return _split(parts[HELD], Form.read(parts), shape)


def _split(held: torch.Tensor, form: Form, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    specs = form.specs(shape)
    return dict(zip(specs, split(held, [*specs.values()]), strict=True))


def _matrix(held: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> LevelMatrix | None:
    """Of the parts; None where a stream is held as it is."""
    form = Form.read(held)
    if form.kind == STREAM:
        return None
    parts = _split(held[HELD], form, shape)
    steps = (parts["rows"], parts["steps"]) if form.has_factors else None
    if form.kind == DENSE:
        return DenseLevels(shape, steps, parts["codes"], form.bits, parts["levels"], form.count)
    places = {name: parts[name] for name in ("starts", "marks", "columns")}
    low, levels = low_bits(shape, form.count), (parts["levels"], parts["common"])
    return SparseLevels(shape, steps, places, low, form.count, parts["values"], form.bits, *levels)
