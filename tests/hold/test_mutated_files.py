"""Files that were damaged or forged: every reader says so in one sentence, in bounded time.

Each target is a file of a checkpoint, an analysis, a patch or a choice of the user; it is damaged
in many ways, each from a seed, and then read by everything that reads it. Weights that are not the
ones that were written never pass `verify`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import pytest
from support.bounded_time import at_most
from support.every_file import write_tree
from support.every_reader import (
    is_line,
    read_analysis,
    read_budget,
    read_calibration,
    read_cards,
    read_dense_config,
    read_layout,
    read_manifest,
    read_measured,
    read_original,
    read_packed,
    read_patch,
    read_recipe,
    read_sharded,
    read_state,
    read_texts,
    read_upcycle,
    read_weights,
)
from support.mutations import (
    Damage,
    damaged_bytes,
    damaged_json,
    damaged_weights,
    damaged_yaml,
)
from support.seeded_attacks import refusals

from ders_core.analysis.tables import COLUMNS, META
from ders_core.checkpoint.layouts import LAYOUT_FILE
from ders_core.errors import DersError
from ders_core.files.model_files import INDEX, SINGLE
from ders_core.files.output import STATE
from ders_core.files.store import PATCH_FILE
from ders_core.packed.names import MANIFEST
from ders_core.pipeline.card import CARD

SECONDS = 30
"""For one input; it takes a hundredth of a second."""


@dataclass(frozen=True)
class Target:
    """file: relative to the tree. read: everything that reads it, given the tree."""

    file: str
    damage: Damage
    read: Callable[[Path], None]
    refuses: bool = True
    """Whether anything that is wrong with the file is a reason to refuse."""
    every: int = 1
    """One of so many seeds is tried, where reading is slow."""


OTHER_FORMS = ("whole", "plain", "kinds")
"""Packed with coded bases and other tensors; without a base; with a layout of its own, whose kinds
of tensors the recipe names."""

read_kinds = partial(read_packed, name="kinds")

TARGETS: Mapping[str, Target] = {
    "config": Target("original/config.json", damaged_json, read_original, every=3),
    "weights": Target(f"original/{SINGLE}", damaged_weights, read_weights),
    "dense config": Target("dense/config.json", damaged_json, read_dense_config),
    "dense weights": Target(f"dense/{SINGLE}", damaged_weights, read_dense_config),
    "index": Target(f"sharded/{INDEX}", damaged_json, read_sharded),
    "layout": Target(f"original/{LAYOUT_FILE}", damaged_yaml, read_layout),
    "packed config": Target("packed/config.json", damaged_json, read_packed, every=2),
    "packed weights": Target(f"packed/{SINGLE}", damaged_weights, read_packed),
    "manifest": Target(f"packed/{MANIFEST}", damaged_json, read_manifest),
    **{
        f"{name} {what}": Target(f"{name}/{file}", damage, partial(read, name=name), every=3)
        for name in OTHER_FORMS
        for what, file, damage, read in (
            ("weights", SINGLE, damaged_weights, read_packed),
            ("manifest", MANIFEST, damaged_json, read_manifest),
        )
    },
    "kinds layout": Target(f"kinds/{LAYOUT_FILE}", damaged_yaml, read_kinds, every=3),
    "patch": Target(f"patch/{PATCH_FILE}", damaged_json, read_patch),
    "patch weights": Target("patch/patch.safetensors", damaged_weights, read_patch),
    "recipe": Target("recipe.yaml", damaged_yaml, read_recipe),
    "budget": Target("budget.yaml", damaged_yaml, read_budget, every=2),
    "upcycle": Target("upcycle.yaml", damaged_yaml, read_upcycle),
    "meta": Target(f"analysis/{META}", damaged_json, read_analysis),
    **{
        f"table {name}": Target(f"analysis/{name}.parquet", damaged_bytes, read_analysis, every=4)
        for name in COLUMNS
    },
    "state": Target(f"begun.partial/{STATE}", damaged_json, read_state, refuses=False),
    "calibration": Target("calibration.safetensors", damaged_weights, read_calibration),
    "gradients": Target(
        "gradients.safetensors", damaged_weights, partial(read_calibration, name="gradients")
    ),
    "quality": Target("quality.json", damaged_json, read_measured),
    "texts": Target("texts.jsonl", damaged_bytes, read_texts),
    "card": Target(f"packed/{CARD}", damaged_bytes, read_cards, refuses=False, every=4),
}

WITH_LAYOUT = ("layout",)
"""Targets for which a layout lies beside the original; for others it would hide the families."""

KEPT: Mapping[str, tuple[int, ...]] = {
    "manifest": (2102,),
    "meta": (1797,),
    "packed config": (1420, 1770),
    "patch": (1080, 1519, 1661, 1687, 2023),
    "weights": (1248,),
}
"""Seeds that once did harm, by target: they are always tried."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of every file, whole."""
    place = tmp_path_factory.mktemp("whole")
    write_tree(place)
    return place


@pytest.fixture
def working(tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tree, tmp_path / "tree"))


def attack(tree: Path, target: Target, seed: int) -> bool:
    """Damage the target's file as the seed says, read it, and mend it; whether it was refused."""
    file = tree / target.file
    whole = file.read_bytes()
    file.write_bytes(target.damage(Random(f"{target.file} {seed}"), whole))
    refusal = ""
    try:
        with at_most(SECONDS):
            target.read(tree)
    except DersError as error:
        refusal = str(error) or "\n"
    finally:
        file.write_bytes(whole)
    assert not refusal or is_line(refusal), refusal
    return bool(refusal)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_refused_in_one_sentence(
    working: Path, name: str, rounds: Callable[[int, int], int], tally: Counter[str]
) -> None:
    for packed in ("packed", *OTHER_FORMS):
        shutil.copy(working / packed / SINGLE, working / f"{packed}.whole")
    if name in WITH_LAYOUT:
        shutil.copy(working / "layout.yaml", working / "original" / LAYOUT_FILE)
    target = TARGETS[name]
    target.read(working)
    tried = [*KEPT.get(name, ()), *range(0, rounds(18, 2400), target.every)]

    def one(seed: int) -> bool:
        tally["damaged files"] += 1
        return attack(working, target, seed)

    refused = refusals(name, tried, one)
    assert refused > 0 or not target.refuses, "nothing was damaged"
