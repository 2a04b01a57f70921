"""Packed checkpoints of released format versions must read the same for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ders_core.packed import PackedCheckpoint
from ders_core.synthesize import synthesize
from ders_core.verify import verify

HERE = Path(__file__).parent
HASHES: dict[str, dict[str, str]] = json.loads((HERE / "hashes.json").read_text())


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def test_every_codec_has_one() -> None:
    directories = {path.parent.name for path in HERE.glob("*/ders_manifest.json")}
    assert directories == set(HASHES)
    used = {
        group.codec["codec"]
        for name in HASHES
        for group in PackedCheckpoint(HERE / name).manifest.groups
    }
    assert used == {"sparse", "quantized", "lowrank", "keep"}


def test_every_form_has_one() -> None:
    """Fused tensors with biases and several bases; codes with a shared expert."""
    groups = PackedCheckpoint(HERE / "v1-fused").manifest.groups
    assert {group.bases for group in groups} == {(0, 1, 0, 1), None}  # `keep` has none
    assert all(len(group.biases) == 4 for group in groups)
    assert {group.experts[1].axes for group in groups} == {"expert in (out part)", "expert in out"}
    groups = PackedCheckpoint(HERE / "v1-fp8").manifest.groups
    assert {(group.stored, group.shape[0]) for group in groups} == {("fp8", 3)}


@pytest.mark.parametrize("name", sorted(HASHES))
def test_golden(name: str, tmp_path: Path) -> None:
    assert verify(HERE / name).ok
    synthesize(HERE / name, tmp_path / "back")
    tensors = load_file(tmp_path / "back" / "model.safetensors")
    assert {key: digest(tensor) for key, tensor in tensors.items()} == HASHES[name]
    packed = PackedCheckpoint(HERE / name)
    assert {key: digest(packed.read(key)) for key in packed.names()} == HASHES[name]


def test_they_are_small() -> None:
    size = sum(file.stat().st_size for file in HERE.rglob("*") if file.is_file())
    assert size < 150_000
