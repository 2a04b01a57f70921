"""Everything that reads a file of the tree of `every_file`, by that file.

Each function takes the tree, and raises a DersError where a file in it is damaged.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load
from support.every_file import RECIPE
from support.messages import raises_saying
from support.shell import ders

from ders_core.analysis.summary import summarize
from ders_core.analysis.tables import Analysis
from ders_core.checkpoint import dense_ffns
from ders_core.checkpoint.layouts import LAYOUT_FILE, read_layouts
from ders_core.errors import OutputError
from ders_core.files.model_files import SINGLE
from ders_core.files.output import output_directory
from ders_core.files.store import TensorStore
from ders_core.files.texts import read_documents
from ders_core.hf.classes import named_class
from ders_core.packed.open import is_packed, open_checkpoint
from ders_core.packed.patch import patch_problems
from ders_core.pipeline.budget import settled
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.card import front_matter, read_card
from ders_core.pipeline.given_quality import read_quality
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, load_recipe
from ders_core.recipe.budget import Budget
from ders_core.upcycle import DenseModel, load_config


def look(directory: Path) -> None:
    """`ders info` and `ders plan`, and what the pages show."""
    checkpoint = open_checkpoint(directory)
    assert json.dumps(summarize(checkpoint).to_dict(), ensure_ascii=False).encode()
    planned = resolve(Recipe.from_yaml(RECIPE), checkpoint)
    assert json.dumps(planned.to_dict(), ensure_ascii=False).encode()


def look_by_command(directory: Path) -> None:
    for words in (["info", directory], ["info", directory, "--json"]):
        done = ders(*words)
        assert (done.stdout + done.stderr).encode()
        assert done.returncode in (0, 1)


def read_original(tree: Path) -> None:
    look_by_command(tree / "original")
    look(tree / "original")


def read_sharded(tree: Path) -> None:
    look(tree / "sharded")


def read_weights(tree: Path) -> None:
    dense_ffns(TensorStore.open(tree / "original").specs)
    look(tree / "original")


def read_dense_config(tree: Path) -> None:
    dense = DenseModel.open(tree / "dense")
    assert min(dense.layers, dense.hidden, dense.intermediate) >= 0
    assert isinstance(dense.family, str)
    named_class(dense.config)
    assert dense.parameters > 0


def read_packed(tree: Path, name: str = "packed") -> None:
    is_packed(tree / name)
    try:
        verification = verify(tree / name, tree / ("own" if name == "kinds" else "original"))
        assert all(map(is_line, verification.problems))
        if verification.ok:
            assert_intact(tree, name)
    finally:
        look(tree / name)


def synthesize_packed(tree: Path, name: str = "packed") -> None:
    out = tree / "again"
    try:
        synthesize(tree / name, out)
    finally:
        left = [out, out.with_name("again.partial")]
        assert not left[1].exists()
        shutil.rmtree(out, ignore_errors=True)


def read_manifest(tree: Path, name: str = "packed") -> None:
    read_packed(tree, name)
    synthesize_packed(tree, name)


def read_layout(tree: Path) -> None:
    try:
        read_layouts(tree / "original" / LAYOUT_FILE)
    finally:
        look(tree / "original")


def read_recipe(tree: Path) -> None:
    recipe = load_recipe(tree / "recipe.yaml")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    resolve(recipe, open_checkpoint(tree / "original"))


def read_budget(tree: Path) -> None:
    """The recipe, and the rules that it becomes; a share, bytes or a KL is not searched for."""
    recipe = load_recipe(tree / "budget.yaml")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    checkpoint = open_checkpoint(tree / "original")
    budget = recipe.budget or Budget(knob=1e-3)
    if budget.knob is None:
        budget = Budget(knob=1e-3)
    rules = settled(recipe.changed(budget=budget), budget, checkpoint).recipe
    assert Recipe.from_yaml(rules.to_yaml()) == rules


def read_upcycle(tree: Path) -> None:
    config = load_config(tree / "upcycle.yaml")
    assert config.label
    assert config.to_yaml().encode()
    config.chosen_layers(2)


def read_patch(tree: Path) -> None:
    assert all(map(is_line, patch_problems(tree / "patch")))


def read_analysis(tree: Path) -> None:
    analysis = Analysis.load(tree / "analysis")
    assert analysis.verdict.sentence
    assert analysis.missing_layers >= 0
    for key in analysis.group_keys():
        assert analysis.about_clusters(*key)
        analysis.rows_of(*key)
    assert analysis.to_json().encode()


def read_state(tree: Path) -> None:
    """An unfinished output is there, whatever it says of itself."""
    out = tree / "begun"
    work = {"recipe": "that no damage gives"}
    for resume in (False, True):
        with raises_saying(OutputError, "begun"), output_directory(out, work=work, resume=resume):
            pass


def read_calibration(tree: Path, name: str = "calibration") -> None:
    calibration = Calibration.open(tree / f"{name}.safetensors")
    checkpoint = open_checkpoint(tree / "original")
    calibration.check(checkpoint)
    for group in checkpoint.groups():
        calibration.moments(group.layer, group.projection)
        calibration.weighted_moments(group.layer, group.projection)
        calibration.expert_moments(group.layer, group.projection)
        calibration.tokens_per_expert(group)
        calibration.curvatures(group)
        calibration.shrinkage(group.layer, group.projection)
        calibration.base_curvature(group)
        calibration.base_router_curvature(group)
    calibration.tipping()
    for other in calibration.others.names:
        calibration.others.curvature(other)
        calibration.others.router_curvature(other)
        calibration.others.moments(other)
        calibration.others.weighted_moments(other)


def read_measured(tree: Path) -> None:
    assert read_quality(tree / "quality.json").to_dict()


def read_texts(tree: Path) -> None:
    for document in read_documents(tree / "texts.jsonl"):
        assert document.where


def read_cards(tree: Path) -> None:
    front_matter(read_card(tree / "packed"))
    synthesize_packed(tree)


def is_line(text: str) -> bool:
    """Whether a message is one line that can be shown anywhere."""
    return bool(text.strip()) and "\n" not in text and text.encode() is not None


def assert_intact(tree: Path, name: str) -> None:
    """The packed tensors are the ones that were written, as safetensors' own library reads them."""
    now = load((tree / name / SINGLE).read_bytes())
    then = load((tree / f"{name}.whole").read_bytes())
    assert now.keys() == then.keys()
    for name, tensor in now.items():
        assert (tensor.dtype, tensor.shape) == (then[name].dtype, then[name].shape)
        assert tensor.reshape(-1).view(torch.uint8).equal(then[name].reshape(-1).view(torch.uint8))
