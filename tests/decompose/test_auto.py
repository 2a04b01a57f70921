"""`base: auto` tries every kind that asks for it, in order, and plans for the largest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from support.messages import raises_saying

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.averages import around_mean
from ders_core.decompose.base import BASES, Base, BaseContext, BaseCount
from ders_core.decompose.bases.auto import AutoBase
from ders_core.decompose.decomposition import Decomposition
from ders_core.decompose.testing import plain, routing
from ders_core.errors import RecipeError


class ThreefoldBase(Base):
    """A toy that promises a stack of at most three."""

    name: ClassVar[str] = "threefold"
    label: ClassVar[str] = "three at most"
    summary: ClassVar[str] = "At most three."
    order: ClassVar[int] = 15
    tried_by_auto: ClassVar[bool] = True

    def count(self, experts: int) -> BaseCount:
        return BaseCount(3, exact=False)

    def check(self, group: ExpertGroup) -> None:
        if group.shape[0] < 3:
            raise RecipeError(f"{self.name} needs three experts")

    def decompositions(
        self, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        yield self.name, around_mean(group, context.device)


@pytest.fixture
def threefold() -> Iterator[None]:
    BASES.register(ThreefoldBase)
    yield
    BASES.unregister(ThreefoldBase.name)


def names(group: ExpertGroup, context: BaseContext) -> list[str]:
    return [name for name, _ in AutoBase().decompositions(group, context)]


def test_what_it_tries_depends_on_the_calibration(tmp_path: Path) -> None:
    group = plain(tmp_path / "experts")
    assert names(group, BaseContext()) == ["mean", "median"]
    assert names(group, BaseContext(tokens=routing)) == ["mean", "median", "routed"]
    assert AutoBase().count(5) == BaseCount(None, exact=True)


@pytest.mark.usefixtures("threefold")
def test_another_kind_is_tried_and_planned_for(tmp_path: Path) -> None:
    group = plain(tmp_path / "experts")
    assert names(group, BaseContext()) == ["mean", "threefold", "median"]
    assert AutoBase().count(5) == BaseCount(3, exact=False)
    AutoBase().check(group)
    with raises_saying(RecipeError, "threefold", "three"):
        AutoBase().check(plain(tmp_path / "two", group.read()[:2]))
