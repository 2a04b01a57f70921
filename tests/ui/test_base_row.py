"""The Recipe page offers every kind of base that is registered, and asks for what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field
from streamlit.testing.v1 import AppTest
from support.recipe_pages import recipe_of

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.averages import around_mean
from ders_core.decompose.base import BASES, Base, BaseContext
from ders_core.decompose.bases.clusters import ClusteredBase
from ders_core.decompose.bases.dense import DenseBase
from ders_core.decompose.decomposition import Decomposition


class NudgedBase(Base):
    """A toy with a field that a person must fill in."""

    name: ClassVar[str] = "nudged"
    label: ClassVar[str] = "nudged mean"
    summary: ClassVar[str] = "The mean, with a word to remember it by."

    nudged: str = Field(title="Word", description="any word", max_length=5)

    def decompositions(
        self, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        yield self.name, around_mean(group, context.device)


@pytest.fixture
def toy() -> Iterator[type[Base]]:
    BASES.register(NudgedBase)
    yield NudgedBase
    BASES.unregister(NudgedBase.name)


@pytest.fixture
def page(app: AppTest, mixtral_dir: Path) -> AppTest:
    """The Recipe page with a checkpoint."""
    app.run()
    app.session_state["open_path"] = str(mixtral_dir)
    app.run()
    app.button(key="open").click().run()
    app.switch_page("pages/recipe.py").run()
    assert not app.exception
    return app


def choose(page: AppTest, label: str) -> AppTest:
    control = next(item for item in page.segmented_control if item.label == "Base")
    control.set_value(label).run()
    assert not page.exception
    return page


def write(page: AppTest, label: str, text: str) -> AppTest:
    next(item for item in page.text_input if item.label == label).set_value(text).run()
    assert not page.exception
    return page


def base_of(page: AppTest) -> Base:
    return recipe_of(page).base


def test_each_kind_is_offered_where_it_can_be_used(page: AppTest) -> None:
    control = next(item for item in page.segmented_control if item.label == "Base")
    usable = {kind.label for kind in BASES.values() if not kind.needs_calibration}
    assert set(control.options) == usable
    assert control.options[0] == control.value == "experts' mean"
    assert base_of(choose(page, "several means")) == ClusteredBase(clusters="auto")


def test_a_dense_parent_needs_a_directory_that_is_one(
    page: AppTest, dense_parent_dir: Path
) -> None:
    label = "Dense model's directory"
    choose(page, "dense parent")
    assert base_of(page).name == "mean"  # nothing changes before the directory is known
    refusal = write(page, label, "/proc").error[0].value
    assert "/proc" in refusal
    assert "DERS_ROOTS" in refusal
    assert "gone" in write(page, label, str(dense_parent_dir.parent / "gone")).error[0].value
    write(page, label, str(dense_parent_dir))
    assert not page.error
    assert base_of(page) == DenseBase(dense=dense_parent_dir)


def test_a_kind_from_outside_is_offered_and_asks_for_its_field(
    toy: type[Base], page: AppTest
) -> None:
    choose(page, "nudged mean")
    assert write(page, "Word", "longer than it may be").error
    write(page, "Word", "hello")
    assert not page.error
    assert base_of(page) == NudgedBase(nudged="hello")
