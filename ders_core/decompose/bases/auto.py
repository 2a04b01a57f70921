"""`auto`: several kinds of base are tried for each group, and the least error decides; a group
whose experts share nothing goes without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.base import BASES, Base, BaseContext, BaseCount, kinds
from ders_core.decompose.decomposition import Decomposition


@BASES.register
class AutoBase(Base):
    """Tries every kind with `tried_by_auto`; one that needs a calibration, only with one."""

    name: ClassVar[str] = "auto"
    label: ClassVar[str] = "least error"
    summary: ClassVar[str] = (
        "`least error` tries several bases for each group and keeps the best, or none for experts "
        "that share nothing."
    )
    order: ClassVar[int] = 40
    is_optional: ClassVar[bool] = True

    def count(self, experts: int) -> BaseCount:
        counts = {base.count(experts) for base in _candidates()}
        if len(counts) == 1:
            return counts.pop()
        return BaseCount(max(count.most or 1 for count in counts), exact=False)

    def check(self, group: ExpertGroup) -> None:
        for base in _candidates():
            base.check(group)

    def decompositions(
        self, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        for base in _candidates():
            if context.tokens is not None or not base.needs_calibration:
                yield from base.decompositions(group, context)


def _candidates() -> list[Base]:
    bases = (kind.start() for kind in kinds() if kind.tried_by_auto)
    return [base for base in bases if base is not None]
