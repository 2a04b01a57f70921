"""`median`: the experts' elementwise median, which leaves one delta zero at each place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.averages import median_base
from ders_core.decompose.base import BASES, Base, BaseContext
from ders_core.decompose.decomposition import Decomposition, decompose


@BASES.register
class MedianBase(Base):
    """Minimises Σ|Δ_i|."""

    name: ClassVar[str] = "median"
    label: ClassVar[str] = "median"
    summary: ClassVar[str] = (
        "The median leaves one of the deltas zero at each place, which suits sparse forms."
    )
    order: ClassVar[int] = 20
    tried_by_auto: ClassVar[bool] = True

    def decompositions(
        self, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        yield self.name, decompose(group, median_base(group).to(context.device))
