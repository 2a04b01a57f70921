"""`sparse`: a share of the delta's entries is kept, the rest is zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from ders_core.checkpoint.header import TensorSpec
from ders_core.codecs.base import DeltaCodec, EncodeContext, Parts, register
from ders_core.codecs.positions import decode_positions, encode_positions, positions_bytes
from ders_core.codecs.prng import random_positions
from ders_core.codecs.select import largest
from ders_core.errors import CodecError


@register
class Sparse(DeltaCodec):
    """Keep a share 1 − drop_rate of the entries.

    method `random`: F(Δ) = (1−M) ⊙ Δ / (1−p), M random with share p of ones (DeRS eq. 4; DARE).
    M has exactly round(p·n) ones, drawn without replacement, and is drawn again from the seed when
    the delta is decoded: positions take no bytes.
    method `magnitude`: the largest |Δ| stay, not rescaled; positions are stored.
    """

    name: ClassVar[str] = "sparse"
    summary: ClassVar[str] = "Keeps a share of each delta's entries and drops the rest."
    source: ClassVar[str] = "DeRS (arXiv 2503.01359) eq. 4; DARE (arXiv 2311.03099)"

    drop_rate: float = Field(ge=0, lt=1, description="share of entries that are dropped (p)")
    method: Literal["random", "magnitude"] = Field(
        default="random", description="random drop and rescale, or keep the largest"
    )

    @property
    def label(self) -> str:
        return f"{self.method} drop {self.drop_rate:g}"

    def kept(self, shape: tuple[int, int]) -> int:
        """How many entries of one expert stay."""
        size = math.prod(shape)
        return size - round(self.drop_rate * size)

    def parts(self, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, TensorSpec]:
        count = self.kept(shape)
        values = {"values": TensorSpec(dtype, (count,))}
        if self.method == "random":
            return values
        length = positions_bytes(math.prod(shape), count)
        return values | {"positions": TensorSpec(torch.uint8, (length,))}

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        shape = (delta.shape[0], delta.shape[1])
        count, flat = self.kept(shape), delta.reshape(-1)
        if self.method == "random":
            positions = random_positions(flat.numel(), count, context.seed, flat.device)
            return {"values": flat[positions].to(context.dtype)}
        positions = largest(flat, count)
        return {
            "values": flat[positions].to(context.dtype),
            "positions": encode_positions(positions, flat.numel()),
        }

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        values, size = parts["values"].float(), math.prod(shape)
        delta = torch.zeros(size, dtype=torch.float32, device=values.device)
        if self.method == "random":
            positions = random_positions(size, values.numel(), context.seed, values.device)
            delta[positions] = values * (size / values.numel() if values.numel() else 0.0)
        else:
            positions = decode_positions(parts["positions"], size, values.numel())
            whole = positions.numel() == values.numel() and bool((positions.diff() > 0).all())
            if not whole or (positions.numel() and int(positions[-1]) >= size):
                raise CodecError("the stored positions are damaged; copy the file again")
            delta[positions] = values
        return delta.view(shape)
