"""The Recipe page's table of bases and other tensors, and what edits of it make of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.messages import raises_saying

from ders_core.codecs import Entropy, Keep, Lossless, Quantized
from ders_core.errors import CodecError, RecipeError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.plan import resolve
from ders_core.recipe import Recipe
from ders_core.ui import beside_table
from ders_core.ui.recipe_table import OTHER

TWO_BITS = {"codec": "quantized", "bits": 2}


def recipe(**fields: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "rules": [TWO_BITS], **fields})


def edited(source: Path, start: Recipe, what: str, **changed: Any) -> Recipe:
    """After one edit of the row that is called so."""
    checkpoint = open_checkpoint(source)
    rows = beside_table.table(resolve(start, checkpoint), checkpoint)
    (number,) = rows.index[rows["what"] == what]
    return beside_table.apply_edits(start, rows, {int(number): changed})


def test_rows_have_all_bytes(mixtral_dir: Path) -> None:
    """Everything but the deltas: bases, and each tensor outside the experts once."""
    checkpoint = open_checkpoint(mixtral_dir)
    plan = resolve(recipe(others={"codec": "quantized", "bits": 8}), checkpoint)
    rows = beside_table.table(plan, checkpoint).set_index("what")
    assert list(rows.index) == [
        "bases",
        "attention",
        "embeddings",
        "output head",
        "routers",
        "norms",
    ]
    outside = sum(tensor.nbytes for tensor in checkpoint.other_tensors())
    assert rows["before"].drop("bases").sum() == pytest.approx(outside / 1e6)
    saved = rows["before"].sum() - rows["after"].sum()
    told = sum(entry.bytes_before - entry.bytes_after for entry in plan.others)
    assert saved == pytest.approx(told / 1e6)
    assert rows.loc["bases", "codec"] == "keep"
    assert rows.loc["norms", "codec"] == "keep"
    one_expert = sum(group.nbytes // group.shape[0] for group in checkpoint.groups())
    assert rows.loc["bases", "after"] == pytest.approx(one_expert / 1e6)


def test_edits_become_rules(mixtral_dir: Path) -> None:
    start = recipe()
    changed = edited(mixtral_dir, start, "bases", codec="lossless")
    assert [rule.codec for rule in changed.base_codec] == [Lossless()]
    changed = edited(mixtral_dir, changed, "attention", codec="quantized", strength=6)
    changed = edited(mixtral_dir, changed, "norms", codec="lossless")
    checkpoint = open_checkpoint(mixtral_dir)
    codecs = {entry.kind: entry.codec for entry in resolve(changed, checkpoint).others}
    assert isinstance(codecs["attention"], Quantized)
    assert codecs["attention"].bits == 6
    assert codecs["norm"] == Lossless()
    assert set(codecs) == {"attention", "norm"}
    back = edited(mixtral_dir, changed, "attention", codec="keep")
    back = edited(mixtral_dir, back, "norms", codec="keep")
    back = edited(mixtral_dir, back, "bases", codec="keep")
    assert back == start


def test_codecs_decide_about_the_error_of_bases_that_are_coded_here(mixtral_dir: Path) -> None:
    by_chance = {"codec": "entropy", "bits": 0.6, "rounding": "unbiased"}
    eight = {"codec": "quantized", "strength": 8}
    assert edited(mixtral_dir, recipe(rules=[by_chance]), "bases", **eight).shares_base_error
    assert not edited(mixtral_dir, recipe(), "bases", **eight).shares_base_error
    said = recipe(rules=[by_chance], base_error="absorbed")
    assert not edited(mixtral_dir, said, "bases", **eight).shares_base_error


def test_an_edit_overrides_a_general_rule(mixtral_dir: Path) -> None:
    start = recipe(others="lossless")
    changed = edited(mixtral_dir, start, "embeddings", codec="keep")
    checkpoint = open_checkpoint(mixtral_dir)
    kinds = {entry.kind for entry in resolve(changed, checkpoint).others}
    assert "embedding" not in kinds
    assert {"attention", "head"} <= kinds


def test_what_is_written_in_yaml_stays(mixtral_dir: Path) -> None:
    """Several codecs for one kind are shown as such, and an edit of the strength alone is none."""
    start = recipe(others=[{"codec": "lossless"}, {"layers": 0, **TWO_BITS}])
    checkpoint = open_checkpoint(mixtral_dir)
    rows = beside_table.table(resolve(start, checkpoint), checkpoint).set_index("what")
    assert rows.loc["attention", "codec"] == OTHER
    assert edited(mixtral_dir, start, "attention", strength=3) == start


def test_strength_of_the_same_codec(mixtral_dir: Path) -> None:
    """What the table does not show stays as it was."""
    start = recipe(base_codec={"codec": "entropy", "bits": 6, "steps": "even"})
    changed = edited(mixtral_dir, start, "bases", strength=4.5)
    (rule,) = changed.base_codec
    assert rule.codec == Entropy(bits=4.5)
    with raises_saying(CodecError, "not possible"):
        edited(mixtral_dir, start, "bases", strength=-1)


def test_what_needs_a_calibration_is_refused(mixtral_dir: Path) -> None:
    with raises_saying(RecipeError, "calibration"):
        edited(mixtral_dir, recipe(), "bases", codec="unbiased by sensitivity", strength=4)


def test_without_a_base_there_is_no_row(mixtral_dir: Path) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    rows = beside_table.table(resolve(recipe(base="none"), checkpoint), checkpoint)
    assert "bases" not in set(rows["what"])
    kept = Recipe(name="k")
    assert "bases" not in set(beside_table.table(resolve(kept, checkpoint), checkpoint)["what"])
    assert isinstance(kept.codec(0, "up"), Keep)
