"""`quantized`: every entry of the delta becomes a code of 1 to 8 bits, with a scale per group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from ders_core.codecs.choice import Choice, Strength
from ders_core.codecs.codec import DeltaCodec, EncodeContext, Parts, difference, register
from ders_core.codecs.coding.packing import (
    pack,
    pack_trits,
    packed_bytes,
    packed_trits_bytes,
    unpack,
    unpack_trits,
)
from ders_core.codecs.fitting.gptq import compensated
from ders_core.codecs.fitting.levels import Levels, learnt, normal, ternary, uniform
from ders_core.codecs.fitting.scales import best_lines, best_scales
from ders_core.codecs.statistics import DeltaStatistics
from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.files.spec import TensorSpec

CHUNK = 1 << 19
"""Values at a time on the CPU: large beside the cost of a call, small beside a matrix."""

FULL_SCALE = 255

UNIFORM_ERROR = {
    1: 0.6028,
    2: 0.3447,
    3: 0.1935,
    4: 0.1074,
    5: 0.0590,
    6: 0.0322,
    7: 0.0174,
    8: 0.0094,
}
"""‖Δ̂−Δ‖/‖Δ‖ of the best uniform quantizer of a Gaussian with 2^bits levels (Max 1960, table II)."""

LLOYD_MAX = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499}
"""Squared error of the best levels for a Gaussian of variance 1 (Max 1960, table I)."""

PANTER_DITE = 2.7207
"""π√3/2: times 4^−bits, the same where bits are many (Panter and Dite 1951)."""

TERNARY_ERROR = 0.4361
"""‖Δ̂−Δ‖/‖Δ‖ of the best −1, 0 and 1 of a Gaussian; the squared error is 0.1902."""


@register
class Quantized(DeltaCodec):
    """Δ ≈ s·L[q] (+ z): `group_size` neighbours in a row share a scale s (0: a whole row).

    grid `uniform`: 2^bits levels around zero (mid-rise); with 1 bit this is sign(Δ)·mean|Δ|
    (BitDelta, arXiv 2402.10193, per group). `affine`: uniform levels and an offset z per group.
    `ternary`: −1, 0 and 1, five to a byte, 1.6 bits each. `normal`: the levels that suit a Gaussian
    best (Lloyd 1957, Max 1960; the idea of NF4, arXiv 2305.14314). `learned`: levels learnt for
    each expert (k-means), kept in the file.

    A scale has the least squared error among shrunken ranges, refined by least squares, and codes
    are chosen against it as stored: in the model's dtype, or (`scale_bits: 8`) as a share of the
    row's largest. With a calibration, columns weigh as their inputs do, and rounding makes up for
    its errors (GPTQ, arXiv 2210.17323).
    """

    name: ClassVar[str] = "quantized"
    summary: ClassVar[str] = "Rounds each delta's entries to a few bits, with a scale per group."
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
    )

    bits: int | None = Field(default=None, ge=1, le=8, description="bits per entry")
    group_size: int = Field(default=128, ge=0, description="entries per scale; 0 for a whole row")
    grid: Literal["uniform", "affine", "ternary", "normal", "learned"] = Field(
        default="uniform", description="which levels the entries are rounded to"
    )
    scale_bits: Literal[8, 16] = Field(
        default=16, description="16: scales in the model's dtype; 8: as shares of the row's largest"
    )

    @model_validator(mode="after")
    def _bits_or_trits(self) -> Quantized:
        if (self.bits is None) != (self.grid == "ternary"):
            raise ValueError("give bits, except for the grid ternary, which has none")
        return self

    @property
    def label(self) -> str:
        group = f"groups of {self.group_size}" if self.group_size else "one scale a row"
        strength = "ternary" if self.bits is None else f"{self.bits}-bit"
        grid = f" {self.grid}" if self.grid not in ("uniform", "ternary") else ""
        return f"{strength}{grid}, {group}" + (" in 8 bits" if self.scale_bits == 8 else "")

    def dump(self) -> dict[str, Any]:
        """Omit grid and scale_bits that have their default."""
        return {
            key: value
            for key, value in super().dump().items()
            if key not in ("grid", "scale_bits") or value != type(self).model_fields[key].default
        }

    def fields_beside_strength(self) -> dict[str, Any]:
        """The ternary grid has no bits: with bits the grid is the default one again."""
        fields = super().fields_beside_strength()
        if self.grid == "ternary":
            del fields["grid"]
        return fields

    def expected_error(self, statistics: DeltaStatistics) -> float:
        """As for Gaussian values of one variance; scales of small blocks do better."""
        if self.bits is None:
            return TERNARY_ERROR
        if self.grid in ("normal", "learned"):
            return math.sqrt(LLOYD_MAX.get(self.bits, PANTER_DITE * 4.0**-self.bits))
        return UNIFORM_ERROR[self.bits]

    def _groups(self, width: int) -> tuple[int, int]:
        """(groups per row, entries per group); the last group of a row may be shorter."""
        size = max(min(self.group_size or width, width), 1)
        return math.ceil(width / size), size

    def parts(self, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, TensorSpec]:
        out, width = shape
        count, groups = out * width, self._groups(width)[0]
        length = packed_trits_bytes(count) if self.bits is None else packed_bytes(count, self.bits)
        parts = {"codes": TensorSpec(torch.uint8, (length,))}
        if self.scale_bits == 8:
            parts["scales"] = TensorSpec(torch.uint8, (out, groups))
            parts["tops"] = TensorSpec(dtype, (out,))
        else:
            parts["scales"] = TensorSpec(dtype, (out, groups))
        if self.grid == "affine":
            parts["offsets"] = TensorSpec(dtype, (out, groups))
        if self.grid == "learned":
            parts["levels"] = TensorSpec(dtype, (2 ** (self.bits or 0),))
        return parts

    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        levels = self._fixed_levels()
        if levels is None or _compensates(context):
            return super().pack(weight, base, context)
        shape, device = (weight.shape[0], weight.shape[1]), weight.device
        weights = _weights(context.importance, device)

        def read(rows: slice) -> torch.Tensor:
            return difference(weight[rows], base[rows])

        return self._rounded(read, shape, weights, levels, context.dtype, device)

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        weight = torch.empty_like(base)
        for rows, delta in self._decoded(parts, (base.shape[0], base.shape[1])):
            weight[rows] = delta.add_(base[rows].float())
        return weight

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        shape = (delta.shape[0], delta.shape[1])
        weights = _weights(context.importance, delta.device)
        parts: Parts = {}
        levels = self._fixed_levels()
        if levels is None:
            parts["levels"] = self._learn(delta, weights).to(context.dtype)
            levels = Levels(parts["levels"].float(), uniform=False)
        if context.moments is None or not _compensates(context):
            return parts | self._rounded(
                delta.__getitem__, shape, weights, levels, context.dtype, delta.device
            )
        parts |= self._stored_scales(delta, weights, levels, context.dtype)
        scale, offset = self._lines(parts)
        size = self._groups(shape[1])[1]
        codes = torch.empty(shape, dtype=torch.uint8, device=delta.device)

        def round_column(values: torch.Tensor, column: int) -> torch.Tensor:
            own, moved = scale[:, column // size], offset[:, column // size]
            code = levels.nearest((values - moved) / torch.where(own > 0, own, 1.0))
            codes[:, column] = code
            return levels.at(code) * own + moved

        compensated(delta, context.moments.to(delta.device), round_column)
        return parts | {"codes": self._packed(codes)}

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        delta = torch.empty(shape, dtype=torch.float32, device=parts["codes"].device)
        for rows, own in self._decoded(parts, shape):
            delta[rows] = own
        return delta

    def _rounded(
        self,
        read: Callable[[slice], torch.Tensor],
        shape: tuple[int, int],
        weights: torch.Tensor | None,
        levels: Levels,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Parts:
        """Scales and codes of a delta whose rows are read a piece at a time, `[rows, in]`."""
        codes = torch.empty(shape, dtype=torch.uint8, device=device)
        chunks = []
        for rows in self._row_chunks(shape, device):
            delta = read(rows)
            own = self._stored_scales(delta, weights, levels, dtype)
            chunks.append(own)
            scale, offset = (line.unsqueeze(-1) for line in self._lines(own))
            grouped = self._grouped(delta)
            moved = grouped - offset if self.grid == "affine" else grouped
            code = levels.nearest(moved / torch.where(scale > 0, scale, 1.0)).to(torch.int32)
            codes[rows] = code.flatten(1)[:, : shape[1]]
        joined = {name: torch.cat([own[name] for own in chunks]) for name in chunks[0]}
        return joined | {"codes": self._packed(codes)}

    def _packed(self, codes: torch.Tensor) -> torch.Tensor:
        flat = codes.view(-1)
        return pack_trits(flat) if self.bits is None else pack(flat, self.bits)

    def _decoded(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """The delta a piece at a time: which rows, and they, `[rows, in]` float32."""
        out, width = shape
        count = out * width
        if self.bits is None:
            codes = unpack_trits(parts["codes"], count).view(out, width)
        else:
            codes = unpack(parts["codes"], self.bits, count, torch.uint8).view(out, width)
        levels = self._fixed_levels() or Levels(parts["levels"].float(), uniform=False)
        scale, offset = (line.unsqueeze(-1) for line in self._lines(parts))
        for rows in self._row_chunks(shape, codes.device):
            delta = self._grouped(levels.at(codes[rows])).mul_(scale[rows])
            if self.grid == "affine":
                delta += offset[rows]
            yield rows, delta.flatten(1)[:, :width]

    def _fixed_levels(self) -> Levels | None:
        """The levels, None where they are learnt."""
        match self.grid:
            case "uniform":
                return uniform(2 ** (self.bits or 0))
            case "affine":
                return uniform(2 ** (self.bits or 0), centred=False)
            case "ternary":
                return ternary()
            case "normal":
                return normal(self.bits or 0)
            case _:
                return None

    def _row_chunks(self, shape: tuple[int, int], device: torch.device) -> list[slice]:
        """At least one piece, be it empty."""
        return list(row_pieces(shape, chunk_values(device, CHUNK))) or [slice(0, 0)]

    def _grouped(self, rows: torch.Tensor) -> torch.Tensor:
        """`[rows, in]` as `[rows, groups, size]`, padded with zeros."""
        width = rows.shape[1]
        groups, size = self._groups(width)
        if groups * size > width:
            rows = torch.nn.functional.pad(rows, (0, groups * size - width))
        return rows.unflatten(1, (groups, size))

    def _heavy(self, weights: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor | None:
        """Weights `[1, groups, size]` of the entries of `rows`; None where all are 1."""
        width = rows.shape[1]
        groups, size = self._groups(width)
        if weights is None and groups * size == width:
            return None
        return self._grouped(rows.new_ones(1, width) if weights is None else weights)

    def _learn(self, delta: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """Levels for values that are normalised by their group's best uniform scale."""
        normed = torch.empty_like(delta)
        coarse = uniform(2 ** (self.bits or 0))
        heavy = self._heavy(weights, delta)
        for rows in self._row_chunks((delta.shape[0], delta.shape[1]), delta.device):
            grouped = self._grouped(delta[rows])
            scale = best_scales(grouped, heavy, coarse).unsqueeze(-1)
            own = grouped / torch.where(scale > 0, scale, 1.0)
            normed[rows] = own.flatten(1)[:, : delta.shape[1]]
        own = delta.new_ones(1, 1) if weights is None else weights
        return learnt(normed, self.bits or 0, own.expand_as(normed))

    def _stored_scales(
        self, delta: torch.Tensor, weights: torch.Tensor | None, levels: Levels, dtype: torch.dtype
    ) -> Parts:
        """The parts that hold scales, and offsets where there are."""
        out, width = delta.shape
        groups = self._groups(width)[0]
        scales = torch.empty(out, groups, device=delta.device)
        offsets = torch.empty(out, groups, device=delta.device)
        heavy = self._heavy(weights, delta)
        for rows in self._row_chunks((out, width), delta.device):
            grouped = self._grouped(delta[rows])
            if self.grid == "affine":
                own = grouped.new_ones(1, 1, 1) if heavy is None else heavy
                scales[rows], offsets[rows] = best_lines(grouped, own, levels)
            else:
                scales[rows] = best_scales(grouped, heavy, levels)
        parts: Parts = {"offsets": offsets.to(dtype)} if self.grid == "affine" else {}
        if self.scale_bits == 16:
            return {"scales": scales.to(dtype), **parts}
        tops = scales.amax(1) if groups else scales.new_zeros(out)
        stored = tops.to(dtype)
        top = torch.where(stored > 0, stored.float(), 1.0).unsqueeze(1)
        shares = (scales / top * FULL_SCALE).round_().clamp_(0, FULL_SCALE)
        shares = torch.where(scales > 0, shares.clamp_min(1), shares)
        return {"scales": shares.to(torch.uint8), "tops": stored, **parts}

    def _lines(self, parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and offsets as stored, `[out, groups]` float32."""
        scales = parts["scales"].float()
        if self.scale_bits == 8:
            scales = scales * (parts["tops"].float() / FULL_SCALE).unsqueeze(1)
        offsets = parts["offsets"].float() if self.grid == "affine" else torch.zeros_like(scales)
        return scales, offsets


def _compensates(context: EncodeContext) -> bool:
    """Whether rounding makes up for its errors: that needs all second moments."""
    return context.moments is not None and context.moments.dim() == 2


def _weights(importance: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """What an error in each column weighs, `[1, in]` float32, 1 on average; None for 1 each."""
    if importance is None:
        return None
    own = importance.to(device).float().clamp_min(0)
    mean = own.mean()
    if not bool(mean > 0):
        return None
    return (own / mean).clamp_min(1e-6).unsqueeze(0)
