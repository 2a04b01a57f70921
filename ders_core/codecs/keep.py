"""`keep`: the group stays as it is, under its original names, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from ders_core.checkpoint.header import TensorSpec
from ders_core.codecs.base import DeltaCodec, EncodeContext, Parts, register


@register
class Keep(DeltaCodec):
    """No decomposition: the writer copies the experts, so no delta ever reaches this codec."""

    name: ClassVar[str] = "keep"
    summary: ClassVar[str] = "Leaves the experts as they are, bit for bit."
    source: ClassVar[str] = "the original checkpoint"

    @property
    def label(self) -> str:
        return "keep"

    def parts(self, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, TensorSpec]:
        return {"weight": TensorSpec(dtype, shape)}

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        return {"weight": delta.to(context.dtype)}

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        return parts["weight"].float()
