"""Which files make up a model, held against what transformers loads from the same directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.damaged_copies import edit_config
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.files.model_files import INDEX
from ders_core.files.store import TensorStore

NORM, HEAD = "model.norm.weight", "lm_head.weight"
Copy = Callable[[Path], Path]


def refused(path: Path, *facts: str) -> None:
    """A directory is refused in one line that states the facts."""
    with raises_saying(CheckpointError, *facts):
        TensorStore.open(path)


def assert_as_transformers(directory: Path) -> TensorStore:
    """The store's tensors are the parameters that transformers loads, with no word of others."""
    from transformers import MixtralForCausalLM

    model, info = MixtralForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values()), info
    store, state = TensorStore.open(directory), model.state_dict()
    for name in (NORM, HEAD, "model.layers.1.self_attn.q_proj.weight"):
        assert torch.equal(store.tensors[name].read(), state[name]), name
    return store


def edit_index(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((directory / INDEX).read_text())
    change(index)
    (directory / INDEX).write_text(json.dumps(index))


def shifted(source: Path, target: Path) -> None:
    """A copy of a weight file with other values."""
    tensors = {name: tensor + 1 for name, tensor in load_file(source).items()}
    save_file(tensors, target, {"format": "pt"})


def test_a_single_file_hides_the_index_of_an_older_save(
    mixtral_dir: Path, mixtral_sharded_dir: Path, copy_of: Copy
) -> None:
    directory = copy_of(mixtral_sharded_dir)
    shifted(mixtral_dir / "model.safetensors", directory / "model.safetensors")
    store = assert_as_transformers(directory)
    assert list(store.files) == ["model.safetensors"]
    assert store.index is None
    assert store.beside.left_aside == (
        *sorted(path.name for path in directory.glob("model-*.safetensors")),
        INDEX,
    )


@pytest.mark.parametrize(
    "name",
    ["consolidated.safetensors", "ema.safetensors", "model.fp16.safetensors"],
)
def test_other_weights_are_no_part_of_the_model(
    mixtral_dir: Path, copy_of: Copy, name: str
) -> None:
    directory = copy_of(mixtral_dir)
    shifted(directory / "model.safetensors", directory / name)
    store = assert_as_transformers(directory)
    assert list(store.files) == ["model.safetensors"]
    assert store.beside.left_aside == (name,)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.safetensors.index.json"])
def test_the_config_may_name_the_weights(
    mixtral_dir: Path, mixtral_sharded_dir: Path, copy_of: Copy, name: str
) -> None:
    directory = copy_of(mixtral_sharded_dir)
    if name.endswith(".json"):
        (directory / INDEX).rename(directory / name)
    else:
        shutil.copy(mixtral_dir / "model.safetensors", directory / name)
    shifted(mixtral_dir / "model.safetensors", directory / "model.safetensors")
    edit_config(directory, transformers_weights=name)
    store = assert_as_transformers(directory)
    assert "model.safetensors" in store.beside.left_aside
    assert store.index == (name if name.endswith(".json") else None)


@pytest.mark.parametrize(
    "extra", [HEAD + ".tied", "model.layers.0.self_attn.rotary_emb.inv_freq"], ids=["tied", "old"]
)
def test_an_entry_of_the_index_that_no_file_holds(
    mixtral_sharded_dir: Path, copy_of: Copy, extra: str
) -> None:
    directory = copy_of(mixtral_sharded_dir)
    edit_index(
        directory, lambda index: index["weight_map"].update({extra: index["weight_map"][NORM]})
    )
    assert extra not in assert_as_transformers(directory).tensors


def test_a_tensor_that_the_index_forgets_or_misplaces(
    mixtral_sharded_dir: Path, copy_of: Copy
) -> None:
    directory = copy_of(mixtral_sharded_dir)

    def change(index: dict[str, Any]) -> None:
        files = sorted(set(index["weight_map"].values()))
        del index["weight_map"][NORM]
        index["weight_map"][HEAD] = (
            files[-1] if index["weight_map"][HEAD] != files[-1] else files[0]
        )

    edit_index(directory, change)
    store = assert_as_transformers(directory)
    assert NORM in store.tensors


def test_of_two_files_with_a_tensor_the_later_one_counts(
    mixtral_sharded_dir: Path, copy_of: Copy
) -> None:
    directory = copy_of(mixtral_sharded_dir)
    first, *_, last = sorted(directory.glob("model-*.safetensors"))
    for file, value in ((first, 2.0), (last, 3.0)):
        tensors = load_file(file)
        tensors[NORM] = torch.full((64,), value, dtype=torch.bfloat16)
        save_file(tensors, file, {"format": "pt"})
    store = assert_as_transformers(directory)
    assert store.tensors[NORM].read().unique().tolist() == [3.0]
    assert [file for file, names in store.files.items() if NORM in names] == [last.name]


def test_an_index_of_another_checkpoint(mixtral_sharded_dir: Path, copy_of: Copy) -> None:
    directory = copy_of(mixtral_sharded_dir)
    edit_index(
        directory,
        lambda index: index.update(
            weight_map={f"old.{name}": file for name, file in index["weight_map"].items()}
        ),
    )
    refused(directory, INDEX, "different checkpoints")


def test_shards_without_an_index(mixtral_sharded_dir: Path, copy_of: Copy) -> None:
    directory = copy_of(mixtral_sharded_dir)
    (directory / INDEX).unlink()
    refused(directory, INDEX, "model-00001-of-", "copy the index")


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], ["adapter", "merge_and_unload"]),
        (["model.Q4_K_M.gguf"], ["model.Q4_K_M.gguf"]),
    ],
)
def test_what_is_there_instead_is_named(tmp_path: Path, files: list[str], facts: list[str]) -> None:
    for name in ["config.json", *files]:
        (tmp_path / name).write_text("{}")
    refused(tmp_path, str(tmp_path), *facts)


@pytest.mark.parametrize("named", [3, "weights.bin", "../model.safetensors", "no.safetensors"])
def test_a_name_in_the_config_that_is_none(mixtral_dir: Path, copy_of: Copy, named: Any) -> None:
    directory = copy_of(mixtral_dir)
    edit_config(directory, transformers_weights=named)
    refused(directory, "config.json", str(named))


def test_no_safetensors(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    (directory / "model.safetensors").unlink()
    refused(directory, str(directory), "no safetensors files")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_only_is_refused_unopened(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], name: str
) -> None:
    directory = copy_of(mixtral_dir)
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refused(directory, name, "pickle", "save_pretrained")


def test_missing_shard(mixtral_sharded_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_sharded_dir)
    shard = sorted(directory.glob("model-00002*.safetensors"))[0]
    shard.unlink()
    refused(directory, INDEX, shard.name, "missing")


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\nb"],
)
def test_index_that_leaves_the_directory(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], tmp_path: Path, name: str
) -> None:
    directory = copy_of(mixtral_dir)
    (directory / "model.safetensors").unlink()
    shutil.copy(mixtral_dir / "model.safetensors", tmp_path / "outside.safetensors")
    (directory / "sub").mkdir()
    shutil.copy(mixtral_dir / "model.safetensors", directory / "sub" / "model.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(mixtral_dir / "model.safetensors"), name)}
    (directory / INDEX).write_text(json.dumps(index))
    refused(directory, INDEX)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": 3}])
def test_index_without_a_weight_map(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], index: Any
) -> None:
    directory = copy_of(mixtral_dir)
    (directory / "model.safetensors").unlink()
    (directory / INDEX).write_text(json.dumps(index))
    refused(directory, INDEX, "weight_map")
