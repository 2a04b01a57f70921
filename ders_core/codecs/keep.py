"""`keep`: the experts stay as they are, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ders_core.codecs.choice import Choice
from ders_core.codecs.codec import Codec, EncodeContext, Parts, register
from ders_core.codecs.ladder import LadderContext
from ders_core.codecs.statistics import DeltaStatistics, Expected
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch


@register
class Keep(Codec):
    """No decomposition. A group whose experts are all kept stays under its original names, and
    none of its weights reaches this codec; an expert that is kept among others is stored as it
    is."""

    name: ClassVar[str] = "keep"
    summary: ClassVar[str] = "Leaves the experts as they are, bit for bit."
    source: ClassVar[str] = "the original checkpoint"
    choices: ClassVar[tuple[Choice, ...]] = (Choice("keep"),)
    lossless: ClassVar[bool] = True
    menu_place: ClassVar[int] = 0
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)

    @classmethod
    def ladder(cls, context: LadderContext) -> tuple[Codec, ...]:
        return (cls(),)

    @property
    def is_hardware_friendly(self) -> bool:
        return True

    @property
    def label(self) -> str:
        return "keep"

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        return {"weight": TensorSpec(dtype, shape)}

    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        return {"weight": weight.clone()}

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        return parts["weight"]

    def expected(self, statistics: DeltaStatistics) -> Expected:
        return Expected(gain=1.0, noise=0.0)
