"""`none`: no decomposition. Every expert's weight passes through the codec itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.base import BASES, Base, BaseContext
from ders_core.decompose.decomposition import Decomposition, without_base


@BASES.register
class NoBase(Base):
    """Plain quantization, in the same format: what decomposition is to be compared with, and right
    for experts that share no start."""

    name: ClassVar[str] = "none"
    label: ClassVar[str] = "no base"
    summary: ClassVar[str] = (
        "`no base` codes the weights themselves: plain quantization, to compare with."
    )
    order: ClassVar[int] = 70
    is_stored: ClassVar[bool] = False

    def decompositions(
        self, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        yield self.name, without_base(group, context.device)
