"""`mean`: the experts' mean, against which the deltas are smallest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.averages import around_mean
from ders_core.decompose.base import BASES, Base, BaseContext
from ders_core.decompose.decomposition import Decomposition


@BASES.register
class MeanBase(Base):
    """Minimises Σ‖Δ_i‖²."""

    name: ClassVar[str] = "mean"
    label: ClassVar[str] = "experts' mean"
    summary: ClassVar[str] = "The mean of the experts has the smallest deltas."
    order: ClassVar[int] = 10
    tried_by_auto: ClassVar[bool] = True

    def decompositions(
        self, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        yield self.name, around_mean(group, context.device)
