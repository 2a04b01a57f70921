"""Synthesis reads a packed checkpoint once, and tells of damage wherever it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support.counted_reads import read_sizes
from support.damaged_copies import edit_manifest
from support.messages import raises_saying

from ders_core.compute.threads import threads_of_torch
from ders_core.errors import Cancelled, CheckpointError, OutputError
from ders_core.files.tensor import FileTensor
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import Recipe

RULES = {
    "drop": "{codec: sparse, drop_rate: 0.5}",
    "2 bits": "{codec: quantized, bits: 2}",
    "entropy": "{codec: entropy, bits: 1, rounding: unbiased}",
    "lossless": "{codec: lossless}",
    "low rank": "{codec: lowrank, rank: 2}",
    "keep": "{codec: keep}",
}


def recipe_of(rule: str) -> Recipe:
    return Recipe.from_yaml(f"version: 1\nname: one\nrules:\n  - {rule}\n")


@pytest.fixture(params=RULES)
def packed(request: pytest.FixtureRequest, mixtral_dir: Path, tmp_path: Path) -> Path:
    compress(mixtral_dir, tmp_path / "packed", recipe_of(RULES[request.param]))
    return tmp_path / "packed"


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read asks for."""
    return read_sizes(monkeypatch)


def held_bytes(packed: Path) -> int:
    return sum(tensor.nbytes for tensor in PackedCheckpoint(packed).store.tensors.values())


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_each_byte_is_read_once(
    packed: Path, tmp_path: Path, counts: list[int], dtype: str
) -> None:
    """By one thread: one that others overtook reads again what these hashed."""
    counts.clear()
    with threads_of_torch(1):
        synthesize(packed, tmp_path / "back", dtype=dtype)
    assert sum(counts) == held_bytes(packed)


def test_damage_ends_the_work(mixtral_dir: Path, tmp_path: Path, counts: list[int]) -> None:
    """What was not read yet is not read to tell of more."""
    packed = tmp_path / "packed"
    compress(mixtral_dir, packed, recipe_of(RULES["2 bits"]))
    opened = PackedCheckpoint(packed)
    flip_a_bit(opened.store.tensors[f"{opened.manifest.groups[0].prefix}.base"], packed)
    counts.clear()
    with threads_of_torch(1), pytest.raises(CheckpointError, match="is damaged"):
        synthesize(packed, tmp_path / "back")
    assert sum(counts) < held_bytes(packed)


def flip_a_bit(tensor: FileTensor, directory: Path) -> None:
    place = tensor.begin + tensor.nbytes * 2 // 3
    with open(directory / tensor.file_name, "r+b") as file:
        file.seek(place)
        flipped = bytes([file.read(1)[0] ^ 1])
        file.seek(place)
        file.write(flipped)


def test_a_flipped_bit_is_told_in_each_tensor(packed: Path, tmp_path: Path) -> None:
    stored = [*PackedCheckpoint(packed).store.tensors.values()]
    for tensor in stored:
        damaged = Path(shutil.copytree(packed, tmp_path / "damaged"))
        flip_a_bit(tensor, damaged)
        with raises_saying(CheckpointError, damaged, tensor.name, "is damaged", "copy"):
            synthesize(damaged, tmp_path / "back")
        shutil.rmtree(damaged)
        assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize("part", ["lm_head.weight", ".base"])
def test_a_value_beyond_the_dtype_is_told_as_damage_where_it_is_that(
    mixtral_dir: Path, tmp_path: Path, counts: list[int], part: str
) -> None:
    """And nothing is read but what the value was made of, and what was read before."""
    packed = tmp_path / "packed"
    compress(mixtral_dir, packed, recipe_of(RULES["drop"]))
    tensors = PackedCheckpoint(packed).store.tensors
    tensor = tensors[max(name for name in tensors if name.endswith(part))]
    with open(tensor.file, "r+b") as file:
        file.seek(tensor.begin)
        file.write(np.float32(1e38).tobytes() * 8)  # in bfloat16, two values
    counts.clear()
    with threads_of_torch(1), raises_saying(CheckpointError, tensor.name, "is damaged"):
        synthesize(packed, tmp_path / "back", dtype="float16")
    assert sum(counts) < held_bytes(packed)


def test_a_search_for_damage_can_be_stopped(mixtral_dir: Path, tmp_path: Path) -> None:
    """Of a value beyond the dtype that is there rightly, everything is read to know that."""
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3] = 70000.0
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    compress(source, tmp_path / "packed", recipe_of(RULES["drop"]))
    messages = list[str]()

    def stop(done: int, total: int, message: str) -> None:
        messages.append(message)
        if message.startswith("checksums"):
            raise Cancelled("stopped")

    with pytest.raises(OutputError, match=r"model\.norm\.weight"):
        synthesize(tmp_path / "packed", tmp_path / "back", dtype="float16")
    with pytest.raises(Cancelled):
        synthesize(tmp_path / "packed", tmp_path / "back", dtype="float16", progress=stop)
    assert len([message for message in messages if message.startswith("checksums")]) == 1
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("change", ["unknown", "missing"])
def test_names_are_compared(packed: Path, tmp_path: Path, change: str) -> None:
    name = "lm_head.weight"

    def edit(manifest: dict[str, Any]) -> None:
        if change == "unknown":
            del manifest["checksums"][name]
        else:
            manifest["checksums"]["another"] = "0" * 64

    edit_manifest(packed, edit)
    with raises_saying(CheckpointError, name if change == "unknown" else "another", "copy"):
        synthesize(packed, tmp_path / "back")
    assert not (tmp_path / "back").exists()
