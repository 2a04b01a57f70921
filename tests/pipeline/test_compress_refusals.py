"""What compress refuses, by name, and that it then leaves no output."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.compress_support import TWO_BITS, Snapshot, refused

from ders_core.codecs import Keep, Quantized, Sparse
from ders_core.errors import CheckpointError, OutputError, RecipeError
from ders_core.files.past_cache import written_from
from ders_core.pipeline.compress import compress
from ders_core.recipe import DenseBase, Recipe, Rule
from ders_core.units import bytes_text


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_an_existing_output_is_refused(kind: str, mixtral_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "directory":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    for resume in (False, True):
        refused(OutputError, mixtral_dir, out, TWO_BITS, out, "exists", resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_layer_that_is_not_there_writes_nothing(mixtral_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe(name="x", rules=(Rule(layers="9", codec=Quantized(bits=2)),))
    refused(RecipeError, mixtral_dir, tmp_path / "out", recipe, "rule 1 ", "layer 9", "0-1")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_source_writes_nothing(mixtral_dir: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    shard = source / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(CheckpointError, source, tmp_path / "out", TWO_BITS, shard.name)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


BAD = "model.layers.1.block_sparse_moe.experts.2.w3.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values_are_refused_by_name(
    value: float, mixtral_dir: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors[BAD][5, 7] = value
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    for codec in (Quantized(bits=2), Sparse(drop_rate=0.9, method="magnitude")):
        recipe = Recipe(name="x", rules=(Rule(codec=codec),))
        out = tmp_path / codec.name
        refused(CheckpointError, source, out, recipe, BAD, "keep")
    kept = Recipe(
        name="x", rules=(*recipe.rules, Rule(layers="1", projections=("up",), codec=Keep()))
    )
    compress(source, tmp_path / "kept", kept)


def test_values_too_large_for_their_dtype_are_refused_by_name(
    mixtral_dir: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors[BAD][5, 7] = 3e38
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    recipe = Recipe(name="x", rules=(Rule(codec=Sparse(drop_rate=0.0)),))
    compress(source, tmp_path / "fits", recipe)
    rescaled = Recipe(name="x", seed=1, rules=(Rule(codec=Quantized(bits=1, group_size=1)),))
    tensors[BAD.replace(".2.", ".0.")][5, 7] = -3e38
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    refused(
        CheckpointError, source, tmp_path / "out", rescaled, "experts.", "too large", "codec: keep"
    )


FAULTS = {
    "random": ("layer 1, up", "cosine", "below 0.5"),
    "shape": ("layer 1 ", "no gate weight"),  # a layer without one of its FFN's weights is none
    "missing": ("layer 1 ", "no gate weight"),
    "nan": ("layer 1, up", "cosine is nan"),
}
"""What is wrong with a parent, and the facts of the refusal."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_parent_is_refused(
    fault: str, mixtral_dir: Path, dense_parent_dir: Path, tmp_path: Path
) -> None:
    parent = Path(shutil.copytree(dense_parent_dir, tmp_path / "wrong-parent"))
    tensors = load_file(parent / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if fault == "random":
        tensors[name] = torch.randn(112, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    elif fault == "shape":
        tensors[name] = tensors[name][:100].clone()
    elif fault == "nan":
        tensors[name][3, 3] = float("nan")
    else:
        del tensors[name]
    save_file(tensors, parent / "model.safetensors", {"format": "pt"})
    recipe = Recipe(name="d", base=DenseBase(dense=parent), rules=TWO_BITS.rules)
    refused(CheckpointError, mixtral_dir, tmp_path / "out", recipe, "wrong-parent", *FAULTS[fault])


def test_a_parent_that_does_not_exist(mixtral_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe(name="d", base=DenseBase(dense=tmp_path / "gone"), rules=TWO_BITS.rules)
    refused(CheckpointError, mixtral_dir, tmp_path / "out", recipe, tmp_path / "gone", "not exist")


@pytest.mark.parametrize(
    "where",
    [
        "fixed-00000",
        "appended-2-00000",
        "00001-down.json",
        "model.safetensors",
        "config.json",
        "ders_manifest.json",
        "side files",
    ],
)
def test_a_full_disk_is_one_sentence_and_no_output(
    where: str,
    mixtral_dir: Path,
    mix: Recipe,
    packed_dir: Path,
    tmp_path: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """/dev/full makes the kernel itself say that no space is left, at each place that writes."""
    out = tmp_path / "out"

    def open_full(path: Path, mode: str, **options: Any) -> Any:
        full = Path(path).name.removeprefix(".").startswith(where)  # written aside
        return open("/dev/full" if full else path, mode, **options)

    def written_full(path: Path, *given: Any) -> Any:
        return written_from(Path("/dev/full") if path.name.startswith(where) else path, *given)

    def copy_full(path: Path, mode: str, **options: Any) -> Any:
        return open("/dev/full" if "w" in mode else path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr("ders_core.files.writer.open", open_full, raising=False)
        patch.setattr("ders_core.files.in_place.written_from", written_full)
        patch.setattr("ders_core.files.aside.os.fsync", lambda handle: None)
        if where == "side files":
            patch.setattr("ders_core.files.address.open", copy_full, raising=False)
        refused(OutputError, mixtral_dir, out, mix, out, "full")
    compress(mixtral_dir, out, mix, resume=True)  # after space was made
    assert snapshot(out) == snapshot(packed_dir)


def test_too_little_room_is_seen_before_anything_is_written(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr("ders_core.files.output.shutil.disk_usage", lambda path: usage)
    refused(OutputError, mixtral_dir, tmp_path / "out", TWO_BITS, tmp_path, bytes_text(100_000))


def test_a_place_that_cannot_be_written(mixtral_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(OutputError, mixtral_dir, tmp_path / "file" / "out", TWO_BITS, tmp_path / "file")


def test_a_corrected_recipe_goes_into_the_same_output(mixtral_dir: Path, tmp_path: Path) -> None:
    """The first recipe is refused when half of the groups are done; nobody calls that a run."""
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors[BAD][5, 7] = float("nan")
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    refused(CheckpointError, source, tmp_path / "out", TWO_BITS, BAD)
    corrected = Recipe(name="two", rules=(*TWO_BITS.rules, Rule(layers="1", codec=Keep())))
    compress(source, tmp_path / "out", corrected)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "source"]
