"""The bar of a checkpoint's bytes, and what a recipe leaves of each part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.plan import resolve, specs_of
from ders_core.recipe import Recipe
from ders_core.ui.composition import parts

TWO_BITS = {"codec": "quantized", "bits": 2}
EIGHT_BITS = {"codec": "quantized", "bits": 8}


@pytest.mark.parametrize(
    "fields",
    [
        {"rules": [TWO_BITS]},
        {"rules": [TWO_BITS | {"layers": "0"}]},
        {"rules": [TWO_BITS], "base": "none"},
        {"rules": [TWO_BITS], "base": {"clusters": 2}},
        {"rules": [TWO_BITS], "base_codec": EIGHT_BITS, "others": EIGHT_BITS},
        {"rules": []},
    ],
    ids=["two bits", "one layer", "no base", "two bases", "all coded", "nothing"],
)
def test_parts_sum_to_what_the_plan_leaves(mixtral_dir: Path, fields: dict[str, Any]) -> None:
    source = open_checkpoint(mixtral_dir)
    plan = resolve(Recipe.model_validate({"name": "r", **fields}), source)
    shown = {part.name: part for part in parts(source, plan)}
    assert sum(part.share for part in shown.values()) == pytest.approx(1)
    saved = sum(entry.bytes_before - entry.bytes_after for entry in plan.entries)
    saved += sum(other.bytes_before - other.bytes_after for other in plan.others)
    left = source.bytes_total - saved
    assert sum(part.stays for part in shown.values()) * source.bytes_total == pytest.approx(left)
    bases = 0
    for entry in plan.entries:
        if entry.codec.keeps:
            bases += entry.bytes_before // entry.shape[0]
            continue
        for name, spec in specs_of(source, plan, entry.key).items():
            bases += spec.nbytes if ".base" in name else 0
    one_expert = source.bytes_experts / source.num_experts  # of two bases, one counts as repeated
    base = min(bases, one_expert)
    assert shown["base"].stays * source.bytes_total == pytest.approx(base)
    assert all(part.stays <= part.share for part in shown.values())


def test_without_a_plan_everything_stays(mixtral_dir: Path) -> None:
    assert all(part.stays == part.share for part in parts(open_checkpoint(mixtral_dir), None))


def test_no_part_is_longer_than_it_was(mixtral_dir: Path) -> None:
    """Where an upper bound is above what there is."""
    source = open_checkpoint(mixtral_dir)
    lossless = Recipe.model_validate({"name": "r", "rules": [{"codec": "lossless"}]})
    plan = resolve(lossless, source)
    assert sum(entry.bytes_after for entry in plan.entries) > source.bytes_experts
    assert all(part.stays <= part.share for part in parts(source, plan))
