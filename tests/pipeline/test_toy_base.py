"""A kind of base from outside of the package, in one file: it then works everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from support.messages import raises_saying

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.averages import elementwise
from ders_core.decompose.base import BASES, Base, BaseContext, kinds
from ders_core.decompose.decomposition import Decomposition, decompose
from ders_core.decompose.testing import BaseConformance
from ders_core.errors import CheckpointError, RecipeError
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe

TEXT = "name: toy\nbase: midrange\nrules:\n- codec: lossless\n"


class MidrangeBase(Base):
    """Halfway between the smallest and the largest expert, element by element."""

    name: ClassVar[str] = "midrange"
    label: ClassVar[str] = "middle of the range"
    summary: ClassVar[str] = "The middle of the range makes the largest delta small."

    def decompositions(
        self, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        base = elementwise(group, range(group.shape[0]), midrange)
        yield self.name, decompose(group, base.to(context.device))


def midrange(weights: torch.Tensor) -> torch.Tensor:
    """From `[K, rows, in]` to `[rows, in]`."""
    return (weights.float().amin(0) + weights.float().amax(0)) / 2


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    BASES.register(MidrangeBase)
    yield
    BASES.unregister(MidrangeBase.name)


class TestMidrange(BaseConformance):
    @pytest.fixture
    def base(self) -> Base:
        return MidrangeBase()


def test_from_the_recipe_to_the_original_again(
    mixtral_dir: Path, tmp_path: Path, all_tensors: Callable[[Path], dict[str, torch.Tensor]]
) -> None:
    recipe = Recipe.from_yaml(TEXT)
    assert recipe.base == MidrangeBase()
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    source = open_checkpoint(mixtral_dir)
    plan = resolve(recipe, source)
    report = compress(mixtral_dir, tmp_path / "packed", recipe)
    assert report.bytes_after <= plan.bytes_after
    assert {entry.base for entry in report.entries} == {"midrange"}
    packed = PackedCheckpoint(tmp_path / "packed")
    for group in packed.manifest.groups:
        weights = source.group(group.layer, group.projection).read()
        expected = midrange(weights).to(weights.dtype)
        base = packed.matrices.base(group)
        assert base is not None
        assert torch.equal(base, expected)
    assert verify(tmp_path / "packed", mixtral_dir).ok
    synthesize(tmp_path / "packed", tmp_path / "original")
    again, before = all_tensors(tmp_path / "original"), all_tensors(mixtral_dir)
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_it_is_offered_and_forgotten_again(mixtral_dir: Path, tmp_path: Path) -> None:
    assert MidrangeBase in kinds()
    compress(mixtral_dir, tmp_path / "packed", Recipe.from_yaml(TEXT.replace("lossless", "keep")))
    with raises_saying(RecipeError, "'mid'", "base", " midrange"):
        Recipe.from_yaml(TEXT.replace("midrange", "mid"))
    BASES.unregister("midrange")
    try:
        with raises_saying(RecipeError, "line 2: ", "'midrange'"):
            Recipe.from_yaml(TEXT)
        with raises_saying(CheckpointError, "'midrange'", "base"):
            PackedCheckpoint(tmp_path / "packed")
    finally:
        BASES.register(MidrangeBase)
