"""Recipes as tables and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import raises_saying

from ders_core.checkpoint.layouts import PROJECTIONS
from ders_core.codecs import Chain, Codec, Entropy, Keep, Lossless, LowRank, Quantized, Sparse
from ders_core.codecs.group import GroupCodec
from ders_core.errors import CodecError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.plan import resolve
from ders_core.recipe import Recipe, Rule, presets
from ders_core.recipe.numbers import spell_numbers
from ders_core.recipe.summarise import rules_for
from ders_core.ui.recipe_table import (
    OTHER,
    apply_edits,
    choice_of,
    codec_from,
    menu,
    strength_of,
    table,
)

IN_MENU = [
    Keep(),
    Lossless(),
    Sparse(drop_rate=0.9),
    Sparse(drop_rate=0.5, method="magnitude"),
    Sparse(drop_rate=0.5, method="magnitude", budget="row", value_bits=4, positions="fixed"),
    Sparse(drop_rate=0.5, method="della"),
    Sparse(drop_rate=0.25, method="della", spread=0.5, rescale="least_squares"),
    Quantized(bits=2),
    Quantized(bits=4, group_size=0),
    LowRank(rank=7),
    LowRank(energy=0.9),
    LowRank(rank=7, factor_bits=4, leading=2),
    Entropy(bits=2),
    Entropy(bits=0.75),
    Entropy(bits=1, rounding="unbiased"),
    Entropy(bits=0.6, rounding="unbiased", gain=0.9),
    Entropy(bits=1, rounding="unbiased", steps="sensitive"),
    Entropy(bits=3, rounding="compensated", steps="sensitive"),
]
CHAIN = Chain(stages=(LowRank(rank=2), Entropy(bits=1)))
YAML_ONLY = [CHAIN, Sparse(pattern="2:4")]
CODECS = [GroupCodec.same(codec, 2) for codec in IN_MENU]
OTHERS = [
    *(GroupCodec.same(codec, 2) for codec in YAML_ONLY),
    GroupCodec.of([Lossless(), Quantized(bits=2)]),
    GroupCodec.of([CHAIN, Keep()]),
]


@given(
    st.dictionaries(
        st.integers(0, 40),
        st.tuples(*[st.sampled_from([*CODECS, *OTHERS])] * 3),
        min_size=1,
        max_size=12,
    )
)
def test_rules_resolve_to_the_codecs_they_were_made_from(
    chosen: dict[int, tuple[GroupCodec, ...]],
) -> None:
    codecs = {
        (layer, projection): codec
        for layer, row in chosen.items()
        for projection, codec in zip(PROJECTIONS, row, strict=True)
    }
    recipe = Recipe(name="x", calibration=Path("measured"), rules=rules_for(codecs))
    again = Recipe.from_yaml(recipe.to_yaml())
    assert {key: again.group_codec(*key, 2) for key in codecs} == codecs


def test_layers_are_spelled_shortly() -> None:
    assert spell_numbers([5, 0, 2, 1, 7, 8]) == "0-2,5,7-8"


@pytest.mark.parametrize("codec", [*CODECS, *OTHERS], ids=lambda codec: codec.label)
def test_a_row_gives_its_codec_back(codec: GroupCodec) -> None:
    assert (choice_of(codec) == OTHER) == (codec in OTHERS)
    label, strength = choice_of(codec), strength_of(codec)
    assert codec_from(label, strength, codec) == codec


def test_every_entry_of_the_menu_has_an_example() -> None:
    assert {choice_of(codec) for codec in [*CODECS, *OTHERS]} == {*menu(), OTHER}
    assert [strength_of(codec) for codec in OTHERS] == [None] * len(OTHERS)


@pytest.mark.parametrize("before", [*CODECS, *OTHERS], ids=lambda codec: codec.label)
@pytest.mark.parametrize("name", menu())
def test_another_codec_starts_afresh(name: str, before: GroupCodec) -> None:
    got = codec_from(name, None, before)
    if choice_of(before) == name:
        assert got == before
    else:
        entry = menu()[name]
        assert choice_of(got) == name
        assert strength_of(got) == (entry.strength.start if entry.strength else None)
        assert got.codec is not None
        assert len(got.uses) == 2


def test_a_changed_strength_leaves_the_rest() -> None:
    def changed(codec: Codec, name: str, strength: float) -> Codec | None:
        return codec_from(name, strength, GroupCodec.same(codec, 2)).codec

    della = Sparse(drop_rate=0.25, method="della", spread=0.5, rescale="least_squares")
    assert changed(della, "della", 0.5) == della.model_copy(update={"drop_rate": 0.5})
    row = Sparse(drop_rate=0.5, method="magnitude", budget="row", value_bits=4)
    assert changed(row, "magnitude", 0.7) == row.model_copy(update={"drop_rate": 0.7})
    assert changed(Entropy(bits=2), "entropy", 0.3) == Entropy(bits=0.3)
    unbiased = Entropy(bits=2, rounding="unbiased", gain=0.9)
    assert changed(unbiased, "unbiased rounding", 0.3) == unbiased.model_copy(update={"bits": 0.3})
    normal = Quantized(bits=4, group_size=32, grid="normal", scale_bits=8)
    assert changed(normal, "quantized", 2) == normal.model_copy(update={"bits": 2})
    factors = LowRank(rank=7, factor_bits=4, leading=2)
    assert changed(factors, "low rank", 9) == factors.model_copy(update={"rank": 9})
    assert changed(LowRank(bits=0.5), "low rank", 9) == LowRank(rank=9)
    assert changed(LowRank(energy=0.5), "low rank", 9) == LowRank(rank=9)
    assert changed(Quantized(grid="ternary"), "quantized", 2) == Quantized(bits=2)


def test_a_gain_is_chosen_beside_the_strength() -> None:
    begun = codec_from("unbiased rounding", 0.5, GroupCodec.same(Quantized(bits=2), 2))
    assert begun.codec == Entropy(bits=0.5, rounding="unbiased", gain="auto")
    least = codec_from("unbiased rounding", 0.5, begun, "least_squares")
    assert least.codec == Entropy(bits=0.5, rounding="unbiased", gain="least_squares")
    row = Sparse(drop_rate=0.5, method="magnitude", budget="row")
    unbiased = codec_from("magnitude", 0.9, GroupCodec.same(row, 2), "unbiased")
    assert unbiased.codec == row.model_copy(update={"drop_rate": 0.9, "gain": "unbiased"})
    rescaled = GroupCodec.same(Sparse(drop_rate=0.5, rescale="none"), 2)
    with raises_saying(CodecError, "random drop", "rescale"):
        codec_from("random drop", 0.9, rescaled, "unbiased")
    assert {label for label, entry in menu().items() if not entry.has_gain} == {
        "keep",
        "lossless",
        "low rank",
    }


def test_edits_change_only_their_rows(mixtral_dir: Path) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    plan = resolve(presets()["quantized-4bit"], checkpoint)
    codecs = apply_edits(plan, {1: {"codec": "low rank"}, 2: {"strength": 2}})
    assert codecs[(0, "up")] == GroupCodec.same(LowRank(rank=16), 4)
    assert codecs[(0, "down")] == GroupCodec.same(Quantized(bits=2), 4)
    assert codecs[(0, "gate")] == GroupCodec.same(Quantized(bits=4), 4)
    assert {key: codec for key, codec in codecs.items() if key[0]} == {
        entry.key: entry.codec for entry in plan.entries if entry.layer
    }
    with raises_saying(CodecError, "quantized", " 12 "):
        apply_edits(plan, {0: {"strength": 12}})


def test_the_table_tells_the_plan(mixtral_dir: Path) -> None:
    plan = resolve(presets()["mixed"], open_checkpoint(mixtral_dir))
    rows = table(plan, None)
    assert rows["codec"].tolist()[:3] == ["magnitude", "magnitude", "quantized"]
    assert rows["after"].sum() * 1e6 == pytest.approx(sum(e.bytes_after for e in plan.entries))


def test_codecs_outside_the_menu_are_shown_and_stay(mixtral_dir: Path) -> None:
    recipe = Recipe(
        name="x", rules=(Rule(codec=CHAIN), Rule(experts="1", codec=Sparse(pattern="2:4")))
    )
    plan = resolve(recipe, open_checkpoint(mixtral_dir))
    rows = table(plan, None)
    assert set(rows["codec"]) == {OTHER}
    assert rows["strength"].isna().all()
    codecs = apply_edits(plan, {0: {"strength": 3.0}, 1: {"codec": OTHER}, 2: {"codec": "entropy"}})
    before = {entry.key: entry.codec for entry in plan.entries}
    assert codecs == before | {(0, "down"): GroupCodec.same(Entropy(bits=1), 4)}
