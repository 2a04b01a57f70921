"""`quantized`: every entry of the delta becomes a code of 1 to 8 bits, with a scale per block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ders_core.codecs.choice import Choice, Strength
from ders_core.codecs.codec import (
    Codec,
    DeltaCodec,
    EncodeContext,
    MakeWeight,
    Parts,
    register,
)
from ders_core.codecs.coding.packing import (
    check_trits,
    packed_bytes,
    packed_trits_bytes,
)
from ders_core.codecs.fitting.block_codes import PIECE_BYTES, BlockCodes
from ders_core.codecs.fitting.blocks import Blocks, column_weights
from ders_core.codecs.fitting.code_products import routed_codes
from ders_core.codecs.fitting.codes import (
    TOGETHER,
    CodeLoops,
    Lines,
    decoded,
    decoded_in_pieces,
)
from ders_core.codecs.fitting.deltas import Deltas
from ders_core.codecs.fitting.grouped_codes import grouped_codes
from ders_core.codecs.fitting.in_turn import ROWS
from ders_core.codecs.fitting.learnt_levels import learnt_of_blocks
from ders_core.codecs.fitting.levels import Levels, levels_of
from ders_core.codecs.fitting.plane_products import FEW_PLANES, RoutedPlanes, is_few
from ders_core.codecs.fitting.stored_scales import lines_of
from ders_core.codecs.fitting.tunable_codes import tunable_codes
from ders_core.codecs.gain import GainField, best_gain, expected_with, label_of, target_of
from ders_core.codecs.ladder import LadderContext
from ders_core.codecs.needed_memory import PIECES_BYTES
from ders_core.codecs.plain_fields import omit_defaults
from ders_core.codecs.routed import CodedExperts, RoutedDeltas
from ders_core.codecs.statistics import DeltaStatistics, Expected
from ders_core.codecs.tunable import Tunable
from ders_core.compute import gaussian_error
from ders_core.compute.buffers import fresh
from ders_core.compute.triangles import COLUMNS
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch

if TYPE_CHECKING:
    from ders_core.compute.grouped.calls import GroupedProducts


@register
class Quantized(DeltaCodec):
    """Δ ≈ s·L[q] (+ z): a block of `group_size` neighbours in a row shares a scale s (0: a row).

    grid `uniform`: 2^bits levels around zero (mid-rise); with 1 bit this is sign(Δ)·mean|Δ|
    (BitDelta, arXiv 2402.10193, per block). `affine`: uniform levels and an offset z per block.
    `ternary`: −1, 0 and 1, five to a byte, 1.6 bits each. `normal`: the levels that suit a Gaussian
    best (Lloyd 1957, Max 1960; the idea of NF4, arXiv 2305.14314). `learned`: levels learnt for
    each expert (k-means), kept in the file.

    A scale has the least squared error among shrunken ranges, refined by least squares, and codes
    are chosen against it as stored: in the model's dtype, or (`scale_bits: 8`) as a share of the
    row's largest. With a calibration, columns weigh as their inputs do, and rounding makes up for
    its errors (GPTQ, arXiv 2210.17323).

    gain: what scales are then multiplied by, in each block (with GPTQ in each row), so that deltas
    do not shrink: see `codecs.gain`. It takes no bytes.
    """

    reads_any_base: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 1 << 20
    name: ClassVar[str] = "quantized"
    summary: ClassVar[str] = "Rounds each delta's entries to a few bits, with a scale per block."
    source: ClassVar[str] = "DeRS (arXiv 2503.01359) eq. 5; BitDelta (arXiv 2402.10193); GPTQ"
    choices: ClassVar[tuple[Choice, ...]] = (
        Choice("quantized", strength=Strength("bits", "bits per entry", 4, 1, 8, 1, 1)),
    )
    menu_place: ClassVar[int] = 3
    use_of_calibration: ClassVar[str] = "makes up for its rounding"
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"bits": 1},
        {"bits": 3, "group_size": 5},
        {"bits": 8, "group_size": 0},
        {"grid": "ternary"},
        {"bits": 3, "grid": "affine"},
        {"bits": 1, "grid": "affine", "group_size": 8, "scale_bits": 8},
        {"bits": 3, "grid": "normal", "scale_bits": 8},
        {"bits": 3, "grid": "learned", "group_size": 0},
        {"bits": 1, "gain": "unbiased"},
        {"bits": 2, "grid": "affine", "gain": 0.9, "scale_bits": 8},
        {"grid": "ternary", "gain": "auto", "group_size": 16},
    )

    bits: int | None = Field(default=None, ge=1, le=8, description="bits per entry")
    group_size: int = Field(default=128, ge=0, description="entries per scale; 0 for a whole row")
    grid: Literal["uniform", "affine", "ternary", "normal", "learned"] = Field(
        default="uniform", description="which levels the entries are rounded to"
    )
    scale_bits: Literal[8, 16] = Field(
        default=16, description="16: scales in the model's dtype; 8: as shares of the row's largest"
    )
    gain: GainField = Field(default=None, description="how much of a delta is given back")

    @model_validator(mode="after")
    def _bits_or_trits(self) -> Quantized:
        if (self.bits is None) != (self.grid == "ternary"):
            raise ValueError("give bits, except for the grid ternary, which has none")
        return self

    @property
    def label(self) -> str:
        group = f"blocks of {self.group_size}" if self.group_size else "one scale a row"
        strength = "ternary" if self.bits is None else f"{self.bits}-bit"
        grid = f" {self.grid}" if self.grid not in ("uniform", "ternary") else ""
        scales = " in 8 bits" if self.scale_bits == 8 else ""
        return ", ".join(filter(None, (f"{strength}{grid}", group + scales, label_of(self.gain))))

    def dump(self) -> dict[str, Any]:
        """Omit grid and scale_bits that have their default."""
        return omit_defaults(self, super().dump(), ("grid", "scale_bits"))

    @classmethod
    def ladder(cls, context: LadderContext) -> tuple[Codec, ...]:
        """Deltas so that they do not shrink; whole matrices in blocks half as long, and with levels
        that suit a Gaussian where these are few."""
        if context.part == "matrices":
            few_bits = {"group_size": 64, "grid": "normal", "scale_bits": 8}
            coarse = (cls.model_validate({"bits": bits, **few_bits}) for bits in (2, 3, 4, 5, 6))
            return (*coarse, cls(bits=8, group_size=64))
        few = cls(grid="ternary", scale_bits=8, gain="auto")
        return (
            cls(bits=1, scale_bits=8, gain="auto"),
            few,
            *(cls(bits=bits, scale_bits=8, gain="auto") for bits in (2, 3, 4, 6)),
        )

    @property
    def is_hardware_friendly(self) -> bool:
        return self.bits is not None

    def fields_beside_strength(self) -> dict[str, Any]:
        """The ternary grid has no bits: with bits the grid is the default one again."""
        fields = super().fields_beside_strength()
        if self.grid == "ternary":
            del fields["grid"]
        return fields

    def expected(self, statistics: DeltaStatistics) -> Expected:
        """As for Gaussian values of one variance; scales of small blocks do better."""
        if self.bits is None:
            error = gaussian_error.TERNARY
        elif self.grid in ("normal", "learned"):
            error = gaussian_error.of_best_levels(self.bits)
        else:
            error = gaussian_error.UNIFORM[self.bits]
        return expected_with(self.gain, Expected.of_least_squares(error), statistics.groups)

    def _blocks(self, width: int) -> Blocks:
        return Blocks.of(width, self.group_size)

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        out, width = shape
        count, blocks = out * width, self._blocks(width).count
        length = packed_trits_bytes(count) if self.bits is None else packed_bytes(count, self.bits)
        parts = {"codes": TensorSpec(Dtype.U8, (length,))}
        if self.scale_bits == 8:
            parts["scales"] = TensorSpec(Dtype.U8, (out, blocks))
            parts["tops"] = TensorSpec(dtype, (out,))
        else:
            parts["scales"] = TensorSpec(dtype, (out, blocks))
        if self.grid == "affine":
            parts["offsets"] = TensorSpec(dtype, (out, blocks))
        if self.grid == "learned":
            parts["levels"] = TensorSpec(dtype, (2 ** (self.bits or 0),))
        return parts

    def beside_bytes(self, shape: tuple[int, int]) -> int:
        """The parts, and a few rows; more where levels are learnt, or a gain is measured."""
        if self.grid == "learned" or self.gain == "auto":
            return super().beside_bytes(shape)
        return PIECES_BYTES + sum(spec.nbytes for spec in self.parts(shape, Dtype.F32).values())

    def calibrated_bytes(self, shape: tuple[int, int], *, is_full: bool, makes_whole: bool) -> int:
        """Pieces of errors too; with full moments, some rows are rounded at a time."""
        if self.grid == "learned" or self.gain == "auto":
            return super().calibrated_bytes(shape, is_full=is_full, makes_whole=makes_whole)
        rows = PIECE_BYTES * ROWS * shape[1] if is_full else 0
        whole = 2 * math.prod(shape) if makes_whole else 0
        return self.beside_bytes(shape) + PIECES_BYTES + rows + whole

    def shared_bytes(self, width: int) -> int:
        """The factor of moments; and while it is made, blocks of its columns in float64."""
        return 4 * width**2 + 3 * 8 * COLUMNS * width

    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        return self._packed(Deltas(weight, base), context)

    def check(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> None:
        if self.bits is None:
            check_trits(parts["codes"])

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        return self._decoded(parts, base.shape[1], base)

    def unpack_in_pieces(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> Iterator[torch.Tensor]:
        lines, blocks, levels = lines_of(parts), self._blocks(base.shape[1]), self.levels_of(parts)
        return decoded_in_pieces(parts["codes"], self.bits, lines, levels, blocks, base)

    def unpack_as(
        self,
        dtype: torch.dtype,
        parts: Mapping[str, torch.Tensor],
        base: torch.Tensor,
        context: EncodeContext,
    ) -> torch.Tensor:
        return self._decoded(parts, base.shape[1], base, dtype=dtype)

    def unpack_with_rows(
        self,
        rows: slice,
        parts: Mapping[str, torch.Tensor],
        base: torch.Tensor,
        context: EncodeContext,
    ) -> tuple[Iterable[torch.Tensor], torch.Tensor]:
        first, last, _ = rows.indices(base.shape[0])
        before = first % TOGETHER  # codes of rows before these are in the first bytes of theirs
        delta = self._decoded(parts, base.shape[1], None, slice(first - before, last))
        return self.unpack_in_pieces(parts, base, context), delta[before:]

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        return self._packed(Deltas(delta), context)

    def scaled(self, parts: Parts, factor: torch.Tensor) -> Parts:
        """The parts of the same delta times a factor above 0, float64 `[]`."""
        names = ("tops" if self.scale_bits == 8 else "scales", "offsets")
        return {
            name: (part.float() * factor).to(part.dtype) if name in names else part
            for name, part in parts.items()
        }

    def _packed(self, deltas: Deltas, context: EncodeContext) -> Parts:
        parts: Parts = {}
        blocks, levels = self._blocks(deltas.shape[1]), self._fixed_levels()
        weights = column_weights(context.importance, deltas.device)
        if levels is None:
            table = learnt_of_blocks(deltas, blocks, self.bits or 0, weights)
            parts["levels"] = table.to(context.dtype)
            levels = self.levels_of(parts)
        codes = BlockCodes(
            self.bits,
            levels,
            blocks,
            has_offsets=self.grid == "affine",
            in_bytes=self.scale_bits == 8,
            target=target_of(self.gain),
            dtype=context.dtype,
        )
        parts |= codes.rounded(deltas, weights, context.moments)
        if self.gain != "auto":
            return parts
        delta = deltas.of_rows(slice(None))
        decoded = self.decode(parts, deltas.shape, context)
        return self.scaled(parts, best_gain(delta, decoded, context, by_chance=False))

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        return self._decoded(parts, shape[1], None)

    def product(
        self,
        parts: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        shape: tuple[int, int],
        context: EncodeContext,
    ) -> torch.Tensor:
        """Of a few tokens on a CPU, from the planes of codes that are 1 apart."""
        stacked = {name: part.unsqueeze(0) for name, part in parts.items()}
        planes = self._planes(stacked["codes"], lines_of(stacked), shape)
        if planes is None or not is_few(x, planes):
            return super().product(parts, x, shape, context)
        return planes.product(x)

    def multiplies(self, tokens: int) -> bool:
        """From planes, but for matrices whose blocks are cut in an unusual way."""
        return self.grid in ("uniform", "affine") and tokens * (self.bits or 0) <= FEW_PLANES

    def maker(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> MakeWeight | None:
        levels, blocks = self.levels_of(parts), self._blocks(shape[1])
        loops = CodeLoops.of(parts["codes"], self.bits, levels, blocks, shape[0])
        if loops is None:
            return None

        def make(base: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            lines, weight = lines_of(parts), fresh(shape, dtype)
            if not loops.take(lines, base, weight):
                return self.unpack_as(dtype, parts, base, context)
            loops.write(lines, base, weight)
            return weight

        return make

    def routed(self, coded: CodedExperts) -> RoutedDeltas | None:
        """From planes or trits, with any scales and levels."""
        return routed_codes(coded, self.bits, self._blocks(coded.shape[1]), self._fixed_levels())

    def grouped(self, coded: CodedExperts) -> GroupedProducts | None:
        return grouped_codes(coded, self.bits, self._blocks(coded.shape[1]), self._fixed_levels())

    def _planes(
        self, codes: torch.Tensor, lines: Lines, shape: tuple[int, int]
    ) -> RoutedPlanes | None:
        levels = self._fixed_levels()
        if self.bits is None or levels is None:
            return None
        return RoutedPlanes.of(codes, self.bits, lines, levels, self._blocks(shape[1]), shape)

    def tunable(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Tunable:
        """Scales, in 8 bits the rows' largest alone, offsets, and levels that were learnt."""
        blocks, levels = self._blocks(shape[1]), self._fixed_levels()
        return tunable_codes(parts, self.bits, shape, blocks, levels)

    def _decoded(
        self,
        parts: Mapping[str, torch.Tensor],
        width: int,
        base: torch.Tensor | None,
        rows: slice = slice(None),
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """base + delta in a dtype, the base's if none, or without a base the delta in float32."""
        lines, blocks, levels = lines_of(parts), self._blocks(width), self.levels_of(parts)
        return decoded(parts["codes"], self.bits, lines, levels, blocks, base, rows, dtype)

    def levels_of(self, parts: Mapping[str, torch.Tensor]) -> Levels:
        """What codes stand for."""
        return self._fixed_levels() or Levels(parts["levels"].float(), uniform=False)

    def _fixed_levels(self) -> Levels | None:
        """The levels, None where they are learnt."""
        return None if self.grid == "learned" else levels_of(self.grid, self.bits)
