"""Recipes as tables and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ders_core.checkpoint import Checkpoint
from ders_core.checkpoint.layouts import PROJECTIONS
from ders_core.codecs import Keep, LowRank, Quantized, Sparse
from ders_core.errors import CodecError
from ders_core.plan import resolve
from ders_core.recipe import Recipe, presets
from ders_core.rules import rules_for, spell_numbers
from ders_core.ui.recipe_table import apply_edits, codec_from, form_of, strength_of, table

CODECS = [
    Keep(),
    Sparse(drop_rate=0.9),
    Sparse(drop_rate=0.5, method="magnitude"),
    Quantized(bits=2),
    Quantized(bits=4, group_size=0),
    LowRank(rank=7),
    LowRank(energy=0.9),
]


@given(
    st.dictionaries(
        st.integers(0, 40),
        st.tuples(*[st.sampled_from(CODECS)] * 3),
        min_size=1,
        max_size=12,
    )
)
def test_rules_resolve_to_the_codecs_they_were_made_from(
    chosen: dict[int, tuple[object, ...]],
) -> None:
    codecs = {
        (layer, projection): codec
        for layer, row in chosen.items()
        for projection, codec in zip(PROJECTIONS, row, strict=True)
    }
    recipe = Recipe(name="x", rules=rules_for(codecs))  # type: ignore[arg-type]
    again = Recipe.from_yaml(recipe.to_yaml())
    assert {key: again.codec(*key) for key in codecs} == codecs


def test_layers_are_spelled_shortly() -> None:
    assert spell_numbers([5, 0, 2, 1, 7, 8]) == "0-2,5,7-8"


@pytest.mark.parametrize("codec", CODECS)
def test_a_row_gives_its_codec_back(codec: object) -> None:
    form, strength = form_of(codec), strength_of(codec)  # type: ignore[arg-type]
    assert codec_from(form, strength, codec) == codec  # type: ignore[arg-type]


def test_edits_change_only_their_rows(mixtral_dir: Path) -> None:
    checkpoint = Checkpoint(mixtral_dir)
    plan = resolve(presets()["quantized-4bit"], checkpoint)
    codecs = apply_edits(plan, {1: {"codec": "low rank"}, 2: {"strength": 2}})
    assert codecs[(0, "up")] == LowRank(rank=16)
    assert codecs[(0, "down")] == Quantized(bits=2)
    assert codecs[(0, "gate")] == Quantized(bits=4)
    with pytest.raises(CodecError, match="quantized: 12 is not possible"):
        apply_edits(plan, {0: {"strength": 12}})


def test_the_table_tells_the_plan(mixtral_dir: Path) -> None:
    plan = resolve(presets()["mixed"], Checkpoint(mixtral_dir))
    rows = table(plan, None)
    assert rows["codec"].tolist()[:3] == ["magnitude", "magnitude", "quantized"]
    assert rows["after"].sum() * 1e6 == pytest.approx(sum(e.bytes_after for e in plan.entries))
