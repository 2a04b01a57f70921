"""Directories of other kinds than a model's: each is named, with what to give instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.files.other_kinds import UNFINISHED
from ders_core.files.output import STATE
from ders_core.packed.open import open_checkpoint

ADAPTER = json.dumps({"base_model_name_or_path": "owner/base", "peft_type": "LORA"})
CONFIG = json.dumps({"model_type": "mixtral"})

KINDS: dict[str, tuple[dict[str, str], list[str]]] = {
    "adapter": (
        {"adapter_config.json": ADAPTER, "adapter_model.safetensors": ""},
        ["LoRA adapter", "owner/base", "merge"],
    ),
    "unnamed adapter": ({"adapter_config.json": "["}, ["LoRA adapter", "merge"]),
    "diffusers": ({"model_index.json": "{}", "unet/config.json": "{}"}, ["diffusers"]),
    "gguf": ({"model-Q4_K_M.gguf": "GGUF"}, ["GGUF", "model-Q4_K_M.gguf", "safetensors"]),
    "gguf with a config": ({"config.json": CONFIG, "a.gguf": "GGUF"}, ["GGUF", "a.gguf"]),
    "sentences": ({"modules.json": "[]", "0_T/pytorch_model.bin": ""}, ["sentence-transformers"]),
    "data": ({"dataset_info.json": "{}", "data-0.arrow": ""}, ["data set", "data-0.arrow"]),
    "rows": ({"train-00000.parquet": ""}, ["data set", "train-00000.parquet"]),
    "maker's": (
        {"params.json": "{}", "consolidated.safetensors": ""},
        ["params.json", "config.json"],
    ),
    "tensorflow": ({"config.json": CONFIG, "tf_model.h5": ""}, ["TensorFlow", "tf_model.h5"]),
    "distributed": ({"__0_0.distcp": "", ".metadata": ""}, ["distributed", "__0_0.distcp"]),
    "mlx": ({"weights.npz": ""}, ["NumPy", "weights.npz"]),
    "unfinished": ({STATE: "{}", "staged": ""}, ["unfinished", "--resume"]),
    "empty": ({}, ["empty", "config.json"]),
    "other": ({"notes.md": ""}, ["config.json", "model directory"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_directory_is_instead(kind: str, tmp_path: Path) -> None:
    files, facts = KINDS[kind]
    directory = tmp_path / "given"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(content, encoding="utf-8")
    with raises_saying(CheckpointError, directory, *facts):
        open_checkpoint(directory)


def test_the_state_of_an_output_is_known_by_its_name() -> None:
    assert UNFINISHED == STATE


def test_models_below_are_named(tmp_path: Path) -> None:
    for name in ("b", "a", "c", "d"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").touch()
    models = tmp_path / "models"
    with raises_saying(CheckpointError, models / "a", models / "b", models / "c", "1 more"):
        open_checkpoint(models)
    cached = tmp_path / "models--owner--name"
    for folder in ("blobs", "refs", "snapshots/0123abc"):
        (cached / folder).mkdir(parents=True)
    (cached / "snapshots/0123abc/config.json").touch()
    with raises_saying(CheckpointError, "hub's cache", cached / "snapshots" / "0123abc"):
        open_checkpoint(cached)


def test_a_dense_model_is_called_one(dense_parent_dir: Path) -> None:
    with raises_saying(CheckpointError, dense_parent_dir, "no experts", "dense", "ders upcycle"):
        open_checkpoint(dense_parent_dir)


def test_a_sentence_transformer_is_called_one(dense_parent_dir: Path, tmp_path: Path) -> None:
    for file in dense_parent_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "modules.json").write_text("[]", encoding="utf-8")
    with raises_saying(CheckpointError, "no experts", "sentence-transformers"):
        open_checkpoint(tmp_path)


def test_beside_a_models_own_files_others_do_not_matter(mixtral_dir: Path, tmp_path: Path) -> None:
    for file in mixtral_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for name in ("adapter_config.json", "model.gguf", "modules.json", "params.json", "rows.csv"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert open_checkpoint(tmp_path).num_experts == 4
