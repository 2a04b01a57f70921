"""Directories of safetensors files: read as safetensors reads them, or refused in one sentence."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from support.any_tensors import FILES, same_bits, tensor_sets
from support.damaged_copies import edit_config, edit_tensors
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.files.model_files import INDEX
from ders_core.files.store import TensorStore


def refused(path: Path, *facts: str) -> None:
    """A directory is refused in one line that states the facts."""
    with raises_saying(CheckpointError, *facts):
        TensorStore.open(path)


def test_identity_is_of_the_content(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    before = TensorStore.open(mixtral_dir).identity
    assert TensorStore.open(directory).identity == before
    assert len(bytes.fromhex(before)) == 32
    edit_tensors(directory, lambda t: t | {"model.norm.weight": t["model.norm.weight"] + 1})
    changed = TensorStore.open(directory).identity
    assert changed != before
    edit_config(directory, rms_norm_eps=0.5)
    assert TensorStore.open(directory).identity not in (before, changed)


def test_side_files(mixtral_sharded_dir: Path) -> None:
    names = [file.name for file in TensorStore.open(mixtral_sharded_dir).beside.files]
    assert names == ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]


def test_missing_path(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "does not exist")


def test_a_file_instead_of_a_directory(mixtral_dir: Path) -> None:
    refused(mixtral_dir / "model.safetensors", "model.safetensors", "is a file")


def test_directory_without_config(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path.name, "config.json")


@pytest.mark.parametrize("text", ["{", "[1]", "", "[" * 100_000])
def test_config_that_is_no_json_object(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], text: str
) -> None:
    directory = copy_of(mixtral_dir)
    (directory / "config.json").write_text(text)
    refused(directory, "config.json", "JSON")


def test_truncated_shard(mixtral_sharded_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_sharded_dir)
    shard = sorted(directory.glob("model-00003*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(directory, shard.name, "truncated")


# Whatever safetensors wrote, in however many files


@FILES
@given(tensors=tensor_sets(), files=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_any_directory_is_read_as_safetensors_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, torch.Tensor],
    files: int,
    seed: int,
) -> None:
    directory = tmp_path_factory.mktemp("store")
    chosen = random.Random(seed)
    names = [f"model-{number}.safetensors" for number in range(files)]
    if files == 1:
        names = ["model.safetensors"]  # a single file needs no index
    parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for name, tensor in tensors.items():
        parts[chosen.choice(names)][name] = tensor
    if files > 1:
        names = [name for name in names if parts[name]] or ["model.safetensors"]
    for file in names:
        save_file(parts.get(file, {}), directory / file, {"of": file})
    (directory / "config.json").write_text('{"a": [1, {"b": null}]}')
    weight_map = {name: file for file, part in parts.items() for name in part}
    if names != ["model.safetensors"]:
        (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    store = TensorStore.open(directory)
    assert store.config == {"a": [1, {"b": None}]}
    assert store.specs == {name: read.spec for name, read in store.tensors.items()}
    assert store.tensors.keys() == tensors.keys()
    assert store.bytes_total == sum((directory / name).stat().st_size for name in names)
    for file in names:
        with safe_open(directory / file, "pt") as reference:
            assert sorted(store.files[file]) == sorted(reference.keys())
            assert store.metadata[file] == reference.metadata()
            for name in reference.keys():  # noqa: SIM118
                assert same_bits(store.tensors[name].read(), reference.get_tensor(name))
        begins = [store.tensors[name].begin for name in store.files[file]]
        assert begins == sorted(begins)


def test_any_matrix_of_a_tensor(tmp_path: Path) -> None:
    """`elements` and `strided` against numpy's views of the same values."""
    values = np.arange(3 * 4 * 5 * 2, dtype=np.int16).reshape(3, 4, 5, 2)
    save_file({"x": torch.from_numpy(values)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    tensor = TensorStore.open(tmp_path).tensors["x"]
    assert np.array_equal(tensor.elements(7, 30).numpy(), values.reshape(-1)[7:37])
    for first, second in itertools.permutations(range(4), 2):
        for index in itertools.product(*(range(size) for size in values.shape)):
            if index[first] or index[second]:
                continue
            place: list[Any] = list(index)
            place[first] = place[second] = slice(None)
            wanted = values[tuple(place)]
            wanted = wanted if first < second else wanted.T
            strides = [step // values.itemsize for step in values.strides]
            offset = int(np.dot(index, strides))
            matrix = tensor.strided(offset, wanted.shape, (strides[first], strides[second]))
            assert np.array_equal(matrix.numpy(), wanted)
            assert matrix.is_contiguous()


def test_the_identity_sees_the_middle_of_every_tensor(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(500, dtype=torch.uint8) for name in ("a", "b")}
    (tmp_path / "config.json").write_text("{}")
    seen = set()
    for name, position in ((None, 0), ("a", 250), ("b", 250), ("a", 251)):
        changed = {key: tensor.clone() for key, tensor in tensors.items()}
        if name is not None:
            changed[name][position] = 1
        save_file(changed, tmp_path / "model.safetensors")
        seen.add(TensorStore.open(tmp_path).identity)
    assert len(seen) == 4


def test_the_place_is_kept_and_not_shown(mixtral_dir: Path) -> None:
    store = TensorStore.open(str(mixtral_dir))
    assert store.place == str(mixtral_dir)
    assert "place" not in repr(store)
