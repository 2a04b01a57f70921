"""One class in one file is a codec everywhere: recipes, plans, packed files, pages, predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import Field
from streamlit.testing.v1 import AppTest
from support.messages import raises_saying
from support.recipe_pages import recipe_of

from ders_core.analysis import analyze, expected
from ders_core.codecs import (
    CODECS,
    Choice,
    DeltaCodec,
    DeltaStatistics,
    EncodeContext,
    Expected,
    Parts,
    Strength,
    codec_class,
)
from ders_core.errors import CodecError, RecipeError
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe
from ders_core.ui.recipe_table import apply_edits, choice_of, menu, strength_of, table

RECIPE = "version: 1\nname: toy\nrules:\n- codec: columns\n  share: 0.5\n"


class Columns(DeltaCodec):
    """The first columns of each delta as they are; the rest is zero."""

    name: ClassVar[str] = "columns"
    summary: ClassVar[str] = "Keeps the first columns."
    source: ClassVar[str] = "this test"
    choices: ClassVar[tuple[Choice, ...]] = (
        Choice("columns", strength=Strength("share", "share of columns", 0.25, 0, 1, 0.05, 0.05)),
    )
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({"share": 0.0}, {"share": 0.5})

    share: float = Field(ge=0, le=1, description="share of columns that are kept")

    @property
    def label(self) -> str:
        return f"{100 * self.share:g} % of the columns"

    def columns(self, width: int) -> int:
        return round(self.share * width)

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        return {"columns": TensorSpec(dtype, (shape[0], self.columns(shape[1])))}

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        return {"columns": delta[:, : self.columns(delta.shape[1])].to(context.dtype, copy=True)}

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        delta = torch.zeros(shape, device=parts["columns"].device)
        delta[:, : self.columns(shape[1])] = parts["columns"].float()
        return delta

    def expected(self, statistics: DeltaStatistics) -> Expected:
        return Expected.of_least_squares(math.sqrt(1 - self.share))


@pytest.fixture
def columns() -> Iterator[None]:
    CODECS.register(Columns)
    yield
    CODECS.unregister("columns")


def test_it_comes_and_goes(columns: None) -> None:
    assert codec_class("columns") is Columns
    assert "columns" in menu()
    with raises_saying(CodecError, "codec 'zip'", "chain, columns, entropy"):
        codec_class("zip")


def test_it_is_unknown_before_it_is_registered() -> None:
    assert "columns" not in CODECS
    assert "columns" not in menu()
    with raises_saying(RecipeError, "codec 'columns'"):
        Recipe.from_yaml(RECIPE)


def test_it_is_compressed_verified_and_synthesized(
    columns: None, mixtral_dir: Path, tmp_path: Path
) -> None:
    source, recipe = open_checkpoint(mixtral_dir), Recipe.from_yaml(RECIPE)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    plan = resolve(recipe, source)
    assert plan.exact
    report = compress(mixtral_dir, tmp_path / "packed", recipe)
    assert report.bytes_after == plan.bytes_after
    verified = verify(tmp_path / "packed", mixtral_dir)
    assert verified.ok
    assert len(verified.groups) == len(plan.entries)
    for error in verified.groups:
        assert error.rel_error_delta == pytest.approx(math.sqrt(0.5), rel=0.1)
    synthesize(tmp_path / "packed", tmp_path / "back")
    back = open_checkpoint(tmp_path / "back")
    for group in source.groups():
        weights, half = group.read().double(), group.shape[2] // 2
        expected = weights.mean(0).expand_as(weights).clone()
        expected[:, :, :half] = weights[:, :, :half]
        restored = back.group(group.layer, group.projection).read().double()
        np.testing.assert_allclose(restored.numpy(), expected.numpy(), rtol=2**-6, atol=1e-4)


def test_it_is_in_the_recipe_table_with_its_gain_and_noise(
    columns: None, mixtral_dir: Path
) -> None:
    source = open_checkpoint(mixtral_dir)
    analysis = analyze(source, spectra="none")
    plan = resolve(Recipe.from_yaml(RECIPE), source)
    rows = table(plan, analysis)
    assert set(rows["codec"]) == {"columns"}
    assert set(rows["strength"]) == {0.5}
    assert rows[["gain", "noise"]].to_numpy() == pytest.approx(0.5)
    loss = expected(analysis, 0, "up", Columns(share=0.2))
    assert loss is not None
    assert (loss.gain, loss.noise) == pytest.approx((0.2, 0.4))
    edited = apply_edits(plan, {0: {"strength": 0.75}, 1: {"codec": "keep"}})
    first, second, *_ = edited.values()
    assert (choice_of(first), strength_of(first)) == ("columns", 0.75)
    assert choice_of(second) == "keep"


def test_it_is_on_the_pages(columns: None, app: AppTest, mixtral_dir: Path) -> None:
    app.run()
    app.session_state["open_path"] = str(mixtral_dir)
    app.run()
    app.button(key="open").click().run()
    app.switch_page("pages/recipe.py").run()
    app.selectbox(key="set_codec").set_value("columns").run()
    assert app.number_input(key="set_columns").label == "Share of columns"
    assert app.number_input(key="set_columns").value == 0.25
    app.button(key="set_apply").click().run()
    assert not app.exception
    assert recipe_of(app).codec(1, "down") == Columns(share=0.25)
