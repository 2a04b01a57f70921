"""Recipes: YAML and back, the last rule wins, and errors that point at the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bounded_time import at_most
from support.messages import raises_saying
from support.shell import ders

from ders_core.checkpoint import PROJECTIONS
from ders_core.codecs import Chain, Entropy, Keep, Lossless, LowRank, Quantized, Sparse
from ders_core.codecs.group import GroupCodec
from ders_core.decompose.base import make_base
from ders_core.decompose.bases.routed import RoutedBase
from ders_core.errors import RecipeError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.plan import resolve
from ders_core.recipe import (
    FIRST_PRESET,
    ClusteredBase,
    DenseBase,
    Recipe,
    Rule,
    load_recipe,
    presets,
)
from ders_core.recipe.numbers import numbers_up_to, parse_numbers
from ders_core.upcycle import UpcycleConfig

SHARES = st.floats(0, 1, exclude_min=True, exclude_max=True, allow_nan=False)
CODECS = st.one_of(
    st.builds(Sparse, drop_rate=SHARES, method=st.sampled_from(["random", "magnitude", "della"])),
    st.builds(Sparse, pattern=st.sampled_from(["2:4", "1:2", "4:16"])),
    st.builds(
        Sparse,
        drop_rate=SHARES,
        method=st.just("della"),
        budget=st.sampled_from(["matrix", "row"]),
        rescale=st.sampled_from([None, "none", "unbiased", "least_squares"]),
        spread=SHARES,
        value_bits=st.sampled_from([None, 4, 8]),
        positions=st.sampled_from(["shortest", "fixed"]),
    ),
    st.builds(
        Quantized,
        bits=st.integers(1, 8),
        group_size=st.integers(0, 512),
        grid=st.sampled_from(["uniform", "affine", "normal", "learned"]),
        scale_bits=st.sampled_from([8, 16]),
    ),
    st.builds(Quantized, grid=st.just("ternary"), group_size=st.integers(0, 512)),
    st.builds(LowRank, rank=st.integers(1, 512)),
    st.builds(LowRank, energy=SHARES),
    st.builds(
        LowRank,
        bits=SHARES,
        factor_bits=st.integers(2, 8),
        leading=st.integers(0, 4),
        svd=st.sampled_from(["auto", "exact", "randomized"]),
    ),
    st.builds(Entropy, bits=SHARES),
    st.just(Chain(stages=(LowRank(rank=2), Quantized(bits=1), Sparse(pattern="2:4")))),
    st.just(Lossless()),
    st.just(Keep()),
)
NUMBERS = st.one_of(
    st.just("all"),
    st.lists(
        st.one_of(
            st.integers(0, 99).map(str),
            st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda p: f"{p[0]}-{sum(p)}"),
        ),
        min_size=1,
        max_size=4,
    ).map(",".join),
)
RULES = st.builds(
    Rule,
    layers=NUMBERS,
    projections=st.lists(st.sampled_from(PROJECTIONS), min_size=1, unique=True).map(tuple),
    experts=NUMBERS,
    codec=CODECS,
)
RECIPES = st.builds(
    Recipe,
    name=st.text(min_size=1, max_size=80).filter(str.isprintable),
    seed=st.integers(0, 2**63 - 1),
    base=st.one_of(
        st.sampled_from(["mean", "median", "auto"]).map(make_base),
        st.builds(ClusteredBase, clusters=st.one_of(st.just("auto"), st.integers(2, 9))),
        st.builds(
            DenseBase, dense=st.sampled_from(["/models/x", "a b", "../é", "~/yes"]).map(Path)
        ),
    ),
    calibration=st.sampled_from([None, Path("c.safetensors"), Path("a b/é")]),
    extended=st.booleans(),
    rules=st.lists(RULES, max_size=5).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(recipe=RECIPES)
def test_yaml_and_back(recipe: Recipe) -> None:
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@settings(max_examples=100, deadline=None)
@given(
    recipe=RECIPES,
    layer=st.integers(0, 110),
    projection=st.sampled_from(PROJECTIONS),
    experts=st.integers(1, 12),
)
def test_the_last_rule_that_selects_counts(
    recipe: Recipe, layer: int, projection: str, experts: int
) -> None:
    def speaks(text: str, number: int) -> bool:
        spoken = set()
        for item in text.split(","):
            first, _, last = item.partition("-")
            spoken |= {number} if item == "all" else set(range(int(first), int(last or first) + 1))
        return number in spoken

    group = recipe.group_codec(layer, projection, experts)
    assert len(group.uses) == experts
    for expert in range(experts):
        expected: Any = Keep()
        for rule in recipe.rules:
            here = speaks(rule.layers, layer) and speaks(rule.experts, expert)
            if here and projection in rule.projections:
                expected = rule.codec
        assert recipe.codec(layer, projection, expert) == expected
        assert group.expert(expert) == expected


def test_routed_needs_a_calibration() -> None:
    text = GOOD.replace("base: mean", "base: routed")
    with raises_saying(RecipeError, "line 5: ", "base: routed", "calibration"):
        Recipe.from_yaml(text)
    recipe = Recipe.from_yaml(text + "calibration: c.safetensors\n")
    assert (recipe.base, recipe.calibration) == (RoutedBase(), Path("c.safetensors"))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("written", ["2:4", "'2:4'", '"2:4"'])
def test_a_pattern_needs_no_quotes(written: str) -> None:
    """To YAML 1.1, 2:4 is a number of base 60."""
    text = GOOD.replace("drop_rate: 0.5", f"pattern: {written}")
    assert Recipe.from_yaml(text).codec(1, "gate") == Sparse(pattern="2:4")
    chained = f"name: x\nrules: [{{codec: chain, stages: [{{codec: sparse, pattern: {written}}}, "
    chained += "{codec: quantized, bits: 1}]}]"
    expected = Chain(stages=(Sparse(pattern="2:4"), Quantized(bits=1)))
    assert Recipe.from_yaml(chained).codec(1, "gate") == expected


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3", [3]), ("0-3,7", [0, 1, 2, 3, 7]), (" 1 , 4-4 ", [1, 4]), ("0-0", [0]), ("007", [7])],
)
def test_layer_ranges(text: str, numbers: list[int]) -> None:
    ranges = parse_numbers(text)
    assert ranges is not None
    assert [layer for part in ranges for layer in part] == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1;2", "all,1", "1.5", "٣-"])
def test_wrong_layer_ranges(text: str) -> None:
    with raises_saying(ValueError, repr(text)):
        parse_numbers(text)
    for key in ("layers", "experts"):
        with raises_saying(RecipeError, f"line 2: rules.0.{key}: {text!r}"):
            Recipe.from_yaml(f"name: x\nrules: [{{{key}: '{text}', codec: keep}}]")


def test_layers_and_projections_may_be_numbers_and_words() -> None:
    recipe = Recipe.from_yaml(
        "name: x\n"
        "rules:\n"
        "  - {layers: 3, projections: gate, codec: quantized, bits: 2}\n"
        "  - {layers: [0, 1], codec: keep}\n"
    )
    assert recipe.rules[0].layers == "3"
    assert recipe.rules[0].projections == ("gate",)
    assert recipe.rules[1].layers == "0,1"


GOOD = """\
# a comment
version: 1
name: good
seed: 3
base: mean
rules:
  - codec: quantized
    bits: 2
  - layers: 0-1
    projections: [gate]
    codec: sparse
    drop_rate: 0.5
"""


def test_the_example_for_the_errors_below_is_good() -> None:
    recipe = Recipe.from_yaml(GOOD)
    assert recipe.codec(1, "gate") == Sparse(drop_rate=0.5)
    assert recipe.codec(2, "gate") == Quantized(bits=2)


BASES = ("mean", "median", "routed", "auto", "clusters: auto", "dense: PATH")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("seed: 3", "sead: 3", 4, ["unknown key 'sead'", "seed"]),
        ("seed: 3", "seed: -3", 4, ["seed"]),
        ("seed: 3", "seed: many", 4, ["seed"]),
        ("seed: 3", "3: 4", 4, ["3"]),
        ("name: good", "name: ''", 3, ["name"]),
        ("name: good", "name: [a]", 3, ["name"]),
        ("name: good", 'name: "a\\nb"', 3, ["name", "one line"]),
        ("version: 1", "version: 3", 2, ["version"]),
        ("base: mean", "base: middle", 5, ["'middle'", *BASES, "from 2 on"]),
        ("base: mean", "base: routed", 5, ["base: routed", "calibration"]),
        ("base: mean", "base: {clusters: 1}", 5, ["{'clusters': 1}", *BASES, "from 2 on"]),
        ("base: mean", "base: {dens: x}", 5, ["{'dens': 'x'}", *BASES]),
        ("bits: 2", "bits: 12", 8, ["'quantized'", "bits", "12"]),
        ("bits: 2", "bit: 2", 8, ["'quantized'", "bit"]),
        ("codec: quantized", "codec: squeeze", 7, ["'squeeze'", "lowrank"]),
        ("  - codec: quantized\n    bits: 2", "  - bits: 2", 7, ["needs a codec"]),
        ("layers: 0-1", "layers: 3-1", 9, ["3-1", "backwards"]),
        ("layers: 0-1", "layers: some", 9, ["'some'"]),
        ("layers: 0-1", "layer: 0", 9, ["'layer'"]),
        ("[gate]", "[gate, side]", 10, ["'gate', 'up' or 'down'"]),
        ("codec: sparse", "codec: sprase", 11, ["'sprase'", "sparse"]),
        ("drop_rate: 0.5", "method: random", 9, ["'sparse'", "give", "drop_rate", "pattern"]),
        ("drop_rate: 0.5", "drop_rate: 0.5\n    pattern: '2:4'", 9, ["'sparse'", "not both"]),
        ("drop_rate: 0.5", "pattern: '4:2'", 12, ["pattern", "'4:2'"]),
        ("drop_rate: 0.5", "drop_rate: 0.5\n    experts: 3-1", 13, ["experts", "backwards"]),
        ("bits: 2", "group_size: 8", 7, ["'quantized'", "bits", "ternary"]),
        ("quantized\n    bits: 2", "lossless\n    bits: 2", 8, ["'lossless'", "no parameter"]),
        ("quantized\n    bits: 2", "lowrank\n    rank: 2\n    bits: 1", 7, ["only one"]),
        ("quantized\n    bits: 2", "chain\n    stages: [{codec: keep}]", 8, ["'keep'", "stage 1"]),
        ("drop_rate: 0.5", "drop_rate: 1.5", 12, ["drop_rate", "1.5"]),
        ("drop_rate: 0.5", "drop_rate: 0.5\n    method: best", 13, ["method", "'best'"]),
        ("drop_rate: 0.5", "drop_rate: 0.5\n    3: 4", 13, ["3"]),
        ("seed: 3", "seed: [3", 5, ["not valid YAML"]),
        ("seed: 3", "\tseed: 3", 4, ["not valid YAML"]),
    ],
)
def test_errors_point_at_their_line(old: str, new: str, line: int, words: list[str]) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(GOOD.replace(old, new))
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.line == line, message
    assert message.startswith(f"line {line}: ")
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "just words",
        "3",
        "null",
        "[" * 3000,
        "\0",
        "\ud800",
        "name: !!timestamp 2001-99-99",
    ],
)
def test_what_is_no_recipe_at_all(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text)
    assert "\n" not in str(caught.value)


def test_missing_name() -> None:
    with raises_saying(RecipeError, "'name'"):
        Recipe.from_yaml("rules: []")


def test_load_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert load_recipe(path) == Recipe.from_yaml(GOOD)
    assert load_recipe("keep") == presets()["keep"]
    path.write_text(GOOD.replace("bits: 2", "bits: 99"))
    with pytest.raises(RecipeError, match=r"mine\.yaml: line 8: ") as caught:
        load_recipe(path)
    assert caught.value.line == 8
    with raises_saying(RecipeError, "nothing-like-it", "preset", *presets()):
        load_recipe("nothing-like-it")
    path.write_bytes(b"\xff\xfe\xff")
    with raises_saying(RecipeError, "mine.yaml", "as text"):
        load_recipe(path)


SAMPLES = Path(__file__).parents[2] / "sample_configs"


OLD_PRESETS = {
    "quantized-1bit": {"codec": "quantized", "bits": 1, "group_size": 128},
    "quantized-4bit": {"codec": "quantized", "bits": 4, "group_size": 128},
    "entropy-1bit": {"codec": "entropy", "bits": 1.0},
    "sparse-drop0.9": {"codec": "sparse", "drop_rate": 0.9, "method": "random"},
    "sparse-magnitude0.9": {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude"},
    "lowrank-r16": {"codec": "lowrank", "rank": 16},
}


@pytest.mark.parametrize("name", OLD_PRESETS)
def test_presets_keep_their_meaning(name: str) -> None:
    assert presets()[name].codec(0, "up").dump() == OLD_PRESETS[name]


def test_new_recipes_start_from_unbiased_rounding() -> None:
    assert next(iter(presets())) == FIRST_PRESET
    codec = presets()[FIRST_PRESET].codec(0, "up")
    assert codec.dump() == {
        "codec": "entropy",
        "bits": 1.3,
        "rounding": "unbiased",
        "gain": "auto",
    }


def test_the_presets_are_the_sample_files() -> None:
    assert set(presets()) == {file.stem for file in SAMPLES.glob("*.yaml")}
    assert {"keep", "mixed", "lowrank-r16", "sparse-drop0.9"} <= set(presets())
    for name, recipe in presets().items():
        assert recipe.name == name
        assert yaml.safe_load((SAMPLES / f"{name}.yaml").read_text())["version"] == 1


@pytest.mark.parametrize("directory", ["mixtral_dir", "qwen2_moe_dir"])
@pytest.mark.parametrize("preset", [file.stem for file in sorted(SAMPLES.glob("*.yaml"))])
def test_every_preset_resolves_on_every_family(
    preset: str, directory: str, request: pytest.FixtureRequest
) -> None:
    checkpoint = open_checkpoint(request.getfixturevalue(directory))
    plan = resolve(presets()[preset], checkpoint)
    assert [entry.key for entry in plan.entries] == [g.key for g in checkpoint.groups()]
    if preset.startswith("lossless"):  # the most that weights without any pattern could take
        assert plan.bytes_before < plan.bytes_after < 1.25 * plan.bytes_before
    else:
        assert (plan.bytes_after < plan.bytes_before) == (preset != "keep")
    for entry in plan.entries:
        assert entry.codec == GroupCodec.same(presets()[preset].codec(*entry.key), entry.shape[0])
        assert entry.bytes_before == checkpoint.group(*entry.key).nbytes


@pytest.mark.parametrize(
    ("layers", "named"), [("1", 1), ("0-5", 1), ("2,7", 7), ("0-99999999999", 1), ("5-6,0", 5)]
)
def test_layers_that_the_checkpoint_has_not(qwen2_moe_dir: Path, layers: str, named: int) -> None:
    recipe = Recipe(name="x", rules=(Rule(layers=layers, codec=Quantized(bits=2)),))
    with raises_saying(RecipeError, "rule 1 ", f"layer {named},", " 0,2"):
        resolve(recipe, open_checkpoint(qwen2_moe_dir))


@pytest.mark.parametrize(
    ("experts", "named"), [("6", 6), ("0-5,9", 9), ("3-99999999999", 99999999999)]
)
def test_experts_that_the_checkpoint_has_not(qwen2_moe_dir: Path, experts: str, named: int) -> None:
    recipe = Recipe(name="x", rules=(Rule(experts=experts, codec=Quantized(bits=2)),))
    with raises_saying(RecipeError, "rule 1 ", f"expert {named},"):
        resolve(recipe, open_checkpoint(qwen2_moe_dir))


def test_ranges_larger_than_any_memory() -> None:
    ranges = parse_numbers("1-3,0-999999999999999999,7,9-99999999999")
    assert ranges is not None
    assert list(numbers_up_to(ranges, 4)) == [1, 2, 3, 0, 1, 2, 3, 4, 5, 7, 9]
    for text in ("9" * 19, f"0-{'9' * 5000}"):
        with raises_saying(ValueError, "18 digits"):
            parse_numbers(text)


def test_layers_that_no_memory_holds_are_refused(mixtral_dir: Path) -> None:
    with at_most(20):
        done = ders("analyze", mixtral_dir, "--layers", "0-99999999999")
    assert done.returncode == 1
    assert "no experts at layer 2" in done.stderr
    config = UpcycleConfig.from_yaml("name: a\ndata: {texts: a}\nlayers: 0-99999999999")
    with at_most(20), raises_saying(RecipeError, "99999999999", "0-1"):
        config.chosen_layers(2)
