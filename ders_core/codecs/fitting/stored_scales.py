"""How scales and offsets are stored beside codes: in the model's dtype, or in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping

from ders_core.codecs.fitting.codes import Lines
from ders_core.later import torch

FULL_SCALE = 255
"""The share of a row's largest scale, `tops`."""


def stored_scales(lines: Lines, *, in_bytes: bool, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The parts that hold these scales and offsets. in_bytes: scales as 255ths of the row's
    largest, which is kept in `dtype` as `tops`; what is above 0 stays so, if the largest does."""
    scales = lines.scale
    parts = {} if lines.offset is None else {"offsets": lines.offset.to(dtype)}
    if not in_bytes:
        return {"scales": scales.to(dtype), **parts}
    tops = scales.amax(1) if scales.shape[1] else scales.new_zeros(len(scales))
    stored = tops.to(dtype)
    top = torch.where(stored > 0, stored.float(), 1.0).unsqueeze(1)
    shares = (scales / top * FULL_SCALE).round_().clamp_(0, FULL_SCALE)
    shares = torch.where(scales > 0, shares.clamp_min(1), shares)
    return {"scales": shares.to(torch.uint8), "tops": stored, **parts}


def lines_of(parts: Mapping[str, torch.Tensor]) -> Lines:
    """Scales and offsets as stored, in float32; of one matrix or of several, stacked."""
    scales = parts["scales"].float()
    if "tops" in parts:
        scales = scales * (parts["tops"].float() / FULL_SCALE).unsqueeze(-1)
    offsets = parts.get("offsets")
    return Lines(scales, None if offsets is None else offsets.float())
