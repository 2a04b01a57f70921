"""`verify --against` sees any byte of the original, errors that are not the measured ones, and an
edited config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support.changed_bytes import change_unseen
from support.damaged_copies import edit_config, edit_manifest
from support.shell import ders

from ders_core.codecs import Lossless
from ders_core.packed.names import MANIFEST
from ders_core.pipeline.compress import compress
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, Rule

QUANTIZED = "model.layers.1.block_sparse_moe.experts.3.w3.weight"
KEPT = "model.layers.0.block_sparse_moe.experts.2.w2.weight"
CARRIED = ("model.embed_tokens.weight", "model.norm.weight", KEPT)


@pytest.fixture
def source(mixtral_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixtral_dir, tmp_path / "source"))


@pytest.fixture
def packed(packed_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed_dir, tmp_path / "packed"))


def test_all_is_well(packed_dir: Path, mixtral_dir: Path) -> None:
    assert verify(packed_dir, mixtral_dir).problems == ()


@pytest.mark.parametrize("at", [0, 113, -1])
def test_a_changed_weight_is_told_by_its_group(packed_dir: Path, source: Path, at: int) -> None:
    """A single bit, the lowest of a bfloat16: far too little for the error to tell."""
    change_unseen(source, QUANTIZED, place=at % (112 * 64 * 2) & ~1)
    (problem,) = verify(packed_dir, source).problems
    assert "layer 1, up" in problem
    assert str(source) in problem


@pytest.mark.parametrize("name", CARRIED)
def test_a_changed_tensor_is_told_by_its_name(packed_dir: Path, source: Path, name: str) -> None:
    tensor = load_file(source / "model.safetensors")[name]
    if tensor.nbytes > 512:
        change_unseen(source, name)
    else:  # the sample sees all of it
        tensors = load_file(source / "model.safetensors")
        tensors[name][0] += 1
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert any(repr(name) in problem for problem in verify(packed_dir, source).problems)


def test_the_shell_fails(packed_dir: Path, source: Path) -> None:
    change_unseen(source, QUANTIZED)
    done = ders("verify", packed_dir, "--against", source)
    assert done.returncode == 1
    assert "layer 1, up" in done.stderr
    assert "as they were written" not in done.stdout


@pytest.mark.parametrize("factor", [0.5, 0.97, 1.05, 0.0])
def test_an_error_that_is_not_the_measured_one_is_told(
    packed: Path, mixtral_dir: Path, factor: float
) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        known = manifest["encoded"]["model.layers.1.block_sparse_moe.ders.gate"]
        known["rel_error_weight"] *= factor
        known["rel_error_delta"] *= factor

    edit_manifest(packed, edit)
    (problem,) = verify(packed, mixtral_dir).problems
    assert "layer 1, gate" in problem


def test_a_group_of_which_nothing_is_said_is_told(packed: Path, mixtral_dir: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        del manifest["encoded"]["model.layers.1.block_sparse_moe.ders.gate"]

    edit_manifest(packed, edit)
    (problem,) = verify(packed, mixtral_dir).problems
    assert "layer 1, gate" in problem


def test_an_error_within_its_rounding_is_the_same(packed: Path, mixtral_dir: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        for known in manifest["encoded"].values():
            known["rel_error_weight"] *= 1.0001

    edit_manifest(packed, edit)
    assert verify(packed, mixtral_dir).ok


def test_a_lossless_group_has_no_error_at_all(mixtral_dir: Path, tmp_path: Path) -> None:
    """Even where the manifest claims that the original was packed."""
    compress(mixtral_dir, tmp_path / "all", Recipe(name="all", rules=(Rule(codec=Lossless()),)))
    other = tmp_path / "other"
    shutil.copytree(mixtral_dir, other)
    change_unseen(other, QUANTIZED)
    compress(other, tmp_path / "changed", Recipe(name="all", rules=(Rule(codec=Lossless()),)))
    wanted = json.loads((tmp_path / "all" / MANIFEST).read_text())["encoded"]
    assert {(k["rel_error_delta"], k["rel_error_weight"]) for k in wanted.values()} == {(0.0, 0.0)}

    def claim(manifest: dict[str, Any]) -> None:
        manifest["encoded"] = wanted

    edit_manifest(tmp_path / "changed", claim)
    (problem,) = verify(tmp_path / "changed", mixtral_dir).problems
    assert "layer 1, up" in problem
    assert "without loss" in problem


def as_version_2(manifest: dict[str, Any]) -> None:
    manifest["format_version"] = 2
    del manifest["encoded"]


def test_a_checkpoint_of_version_2_is_verified_as_far_as_it_knows(
    packed: Path, source: Path
) -> None:
    edit_manifest(packed, as_version_2)
    quantization = json.loads((packed / "config.json").read_text())["quantization_config"]
    edit_config(packed, quantization_config=quantization | {"format_version": 2})
    assert verify(packed, source).ok
    change_unseen(source, "model.embed_tokens.weight")
    (problem,) = verify(packed, source).problems
    assert "model.embed_tokens.weight" in problem


def test_an_edited_config_is_told_by_its_key(packed: Path, mixtral_dir: Path) -> None:
    assert verify(packed).ok
    config = (packed / "config.json").read_text()
    edit_config(packed, num_experts_per_tok=1, added=[1, 2])
    problems = verify(packed).problems
    assert len(problems) == 2
    assert any("num_experts_per_tok is 1 and was 2" in problem for problem in problems)
    assert any("added" in problem and "missing" in problem for problem in problems)
    done = ders("verify", packed, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    (packed / "config.json").write_text(json.dumps(json.loads(config)))  # written otherwise
    assert verify(packed).ok


def test_an_edited_recipe_in_the_config_is_told(packed: Path) -> None:
    quantization = json.loads((packed / "config.json").read_text())["quantization_config"]
    edit_config(packed, quantization_config=quantization | {"seed": 12})
    (problem,) = verify(packed).problems
    assert "quantization_config.seed is 12 and was 11" in problem


@pytest.mark.parametrize("value", [None, [], ["a"], [["a", 1]], "ders", "", 3, 0, True, 0.5])
def test_a_quantization_config_that_is_no_object_is_told(packed: Path, value: Any) -> None:
    edit_config(packed, quantization_config=value)
    found = verify(packed)
    assert not found.ok
    (problem,) = found.problems
    assert "quantization_config" in problem
    assert "\n" not in problem
