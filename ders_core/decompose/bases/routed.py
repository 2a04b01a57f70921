"""`routed`: the experts' mean, each weighted by the share of tokens that chose it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.averages import mean_base
from ders_core.decompose.base import BASES, Base, BaseContext
from ders_core.decompose.decomposition import Decomposition, decompose
from ders_core.errors import RecipeError


@BASES.register
class RoutedBase(Base):
    """What is used most gets the smallest delta. If no expert saw a token, it is the mean."""

    name: ClassVar[str] = "routed"
    label: ClassVar[str] = "mean by use"
    summary: ClassVar[str] = (
        "`mean by use` weighs experts by the tokens that chose them (with a calibration)."
    )
    order: ClassVar[int] = 30
    needs_calibration: ClassVar[bool] = True
    tried_by_auto: ClassVar[bool] = True

    def decompositions(
        self, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        if context.tokens is None:
            raise RecipeError(f"base: {self.name} needs a calibration")
        tokens = context.tokens(group)
        total = sum(tokens)
        weights = [count / total for count in tokens] if total else None
        yield self.name, decompose(group, mean_base(group, weights=weights).to(context.device))
