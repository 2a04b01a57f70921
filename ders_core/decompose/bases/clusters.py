"""`clusters`: experts that share a start form a set, and each set has its own mean as its base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.averages import around_mean, mean_base
from ders_core.decompose.base import BASES, Base, BaseContext, BaseCount
from ders_core.decompose.clusters import cluster, delta_gram
from ders_core.decompose.decomposition import Decomposition, decompose
from ders_core.errors import RecipeError
from ders_core.later import torch


@BASES.register
class ClusteredBase(Base):
    """Several bases for a group, from the clusters of `ders_core.decompose.clusters`."""

    name: ClassVar[str] = "clusters"
    label: ClassVar[str] = "several means"
    summary: ClassVar[str] = (
        "Where experts fall into sets (see Redundancy), each set gets its own mean, if that pays."
    )
    order: ClassVar[int] = 50

    clusters: Literal["auto"] | Annotated[int, Field(ge=2)]
    """How many bases each group has; `auto`: as many as pay."""

    @classmethod
    def start(cls) -> ClusteredBase:
        return cls(clusters="auto")

    @classmethod
    def spelling(cls) -> str:
        return "{clusters: auto or a number from 2 on}"

    def check(self, group: ExpertGroup) -> None:
        experts = group.shape[0]
        if self.clusters != "auto" and self.clusters >= experts:
            raise RecipeError(
                f"the recipe wants {self.clusters} bases, but layer {group.layer}, "
                f"{group.projection} has {experts} experts; give fewer, or clusters: auto"
            )

    def count(self, experts: int) -> BaseCount:
        if self.clusters == "auto":
            return BaseCount(max(experts // 2, 1), exact=False)
        return BaseCount(self.clusters)

    def decompositions(
        self, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        count = None if self.clusters == "auto" else self.clusters
        sets = cluster(delta_gram(group), count, bits=8 * group.dtype.itemsize)
        if sets.count > 1:
            yield self.name, _around_means(group, sets.members(), sets.assignment, context.device)
        else:
            yield "mean", around_mean(group, context.device)


def _around_means(
    group: ExpertGroup,
    sets: Sequence[Sequence[int]],
    assignment: Sequence[int],
    device: torch.device | str,
) -> Decomposition:
    base = torch.stack([mean_base(group, members) for members in sets]).to(device)
    return decompose(group, base, assignment)
