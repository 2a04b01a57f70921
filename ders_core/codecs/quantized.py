"""`quantized`: every entry of the delta becomes a code of 1 to 8 bits, with a scale per group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field

from ders_core.checkpoint.header import TensorSpec
from ders_core.codecs.base import DeltaCodec, EncodeContext, Parts, register
from ders_core.codecs.packing import pack, packed_bytes, unpack

CHUNK = 1 << 20
"""Values at a time; the work stays in cache."""

SHRINKS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the group's largest magnitude that are tried as the outermost level."""

REFINEMENTS = 2


@register
class Quantized(DeltaCodec):
    """Uniform mid-rise quantization: Δ ≈ (q − (2^b − 1)/2)·s, q in 0 … 2^b − 1.

    `group_size` neighbours in a row share a scale s (0: a whole row). With 1 bit this is
    sign(Δ)·mean|Δ| (BitDelta, arXiv 2402.10193, per group); with more, s has the least squared
    error among shrunken ranges, refined by least squares. Codes are chosen against s as stored.
    """

    name: ClassVar[str] = "quantized"
    summary: ClassVar[str] = "Rounds each delta's entries to a few bits, with a scale per group."
    source: ClassVar[str] = "DeRS (arXiv 2503.01359) eq. 5; 1 bit: BitDelta (arXiv 2402.10193)"

    bits: int = Field(ge=1, le=8, description="bits per entry")
    group_size: int = Field(default=128, ge=0, description="entries per scale; 0 for a whole row")

    @property
    def label(self) -> str:
        group = f"groups of {self.group_size}" if self.group_size else "one scale a row"
        return f"{self.bits}-bit, {group}"

    def _groups(self, width: int) -> tuple[int, int]:
        """(groups per row, entries per group); the last group of a row may be shorter."""
        size = min(self.group_size or width, width)
        return math.ceil(width / size) if size else 0, size

    def parts(self, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, TensorSpec]:
        out, width = shape
        return {
            "codes": TensorSpec(torch.uint8, (packed_bytes(out * width, self.bits),)),
            "scales": TensorSpec(dtype, (out, self._groups(width)[0])),
        }

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        out, width = delta.shape
        groups, size = self._groups(width)
        codes = torch.empty(out, width, dtype=torch.uint8, device=delta.device)
        scales = torch.empty(out, groups, dtype=context.dtype, device=delta.device)
        step = max(1, CHUNK // max(width, 1))
        for begin in range(0, out, step):
            rows = delta[begin : begin + step]
            grouped = torch.nn.functional.pad(rows, (0, groups * size - width))
            grouped = grouped.view(-1, groups, size)
            scale = self._scale(grouped, width).to(context.dtype)
            scales[begin : begin + step] = scale
            code = self._codes(grouped, scale.float().unsqueeze(-1))
            codes[begin : begin + step] = code.flatten(1)[:, :width].to(torch.uint8)
        return {"codes": pack(codes.view(-1), self.bits), "scales": scales}

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        out, width = shape
        groups, size = self._groups(width)
        codes = unpack(parts["codes"], self.bits, out * width, torch.uint8).view(out, width)
        delta = torch.empty(out, width, dtype=torch.float32, device=codes.device)
        step = max(1, CHUNK // max(width, 1))
        for begin in range(0, out, step):
            rows = codes[begin : begin + step].float() - self._centre
            grouped = torch.nn.functional.pad(rows, (0, groups * size - width))
            scale = parts["scales"][begin : begin + step].float().unsqueeze(-1)
            grouped = grouped.view(-1, groups, size) * scale
            delta[begin : begin + step] = grouped.flatten(1)[:, :width]
        return delta

    @property
    def _centre(self) -> float:
        return (2**self.bits - 1) / 2

    def _codes(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """values: `[rows, groups, size]`; scale: `[rows, groups, 1]`. Codes as floats."""
        safe = torch.where(scale > 0, scale, 1.0)
        return torch.floor(values / safe + (self._centre + 0.5)).clamp_(0, 2**self.bits - 1)

    def _scale(self, values: torch.Tensor, width: int) -> torch.Tensor:
        """The scale of each group, `[rows, groups]` float32; padding beyond `width` has no say."""
        _, groups, size = values.shape
        real = torch.arange(groups * size, device=values.device).view(groups, size) < width
        if self.bits == 1:
            return 2 * values.abs().sum(-1) / real.sum(-1)
        largest = values.abs().amax(-1)
        best, least = largest / self._centre, torch.full_like(largest, torch.inf)
        candidates = [largest * (shrink / self._centre) for shrink in SHRINKS]
        for number in range(len(SHRINKS) + REFINEMENTS):
            if number < len(SHRINKS):
                scale = candidates[number]
            else:
                level = (self._codes(values, best.unsqueeze(-1)) - self._centre) * real
                scale = (values * level).sum(-1) / level.square().sum(-1).clamp_min(1e-30)
            level = self._codes(values, scale.unsqueeze(-1)) - self._centre
            error = ((values - level * scale.unsqueeze(-1)) * real).square().sum(-1)
            better = error < least
            best, least = torch.where(better, scale, best), torch.where(better, error, least)
        return best
