"""Files and manifests of packed checkpoints that were tampered with: refused, with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.packed.manifest import FORMAT_VERSION
from ders_core.packed.names import MANIFEST
from ders_core.packed.open import is_packed
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify

Tensors = Callable[[Path], dict[str, torch.Tensor]]
Tamper = Callable[[dict[str, Any]], None]


def refused(directory: Path, *facts: str) -> None:
    for action in (PackedCheckpoint, verify):
        with raises_saying(CheckpointError, *facts):
            action(directory)


def test_a_truncated_file(damaged: Path) -> None:
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    refused(damaged, "model.safetensors", "truncated")


def test_a_missing_manifest(damaged: Path) -> None:
    (damaged / MANIFEST).unlink()
    assert is_packed(damaged)  # its config says so
    refused(damaged, MANIFEST)


@pytest.mark.parametrize("text", ["{", "[]", "", '{"format_version": 1'])
def test_a_manifest_that_is_no_json_object(damaged: Path, text: str) -> None:
    (damaged / MANIFEST).write_text(text)
    refused(damaged, MANIFEST)


def group_with(manifest: dict[str, Any], codec: str) -> dict[str, Any]:
    group: dict[str, Any] = next(g for g in manifest["groups"] if g["codec"]["codec"] == codec)
    return group


def shape(manifest: dict[str, Any]) -> None:
    manifest["groups"][0]["shape"][1] += 1


def negative_shape(manifest: dict[str, Any]) -> None:
    manifest["groups"][0]["shape"] = [4, -112, -64]


def zero_shape(manifest: dict[str, Any]) -> None:
    group_with(manifest, "quantized")["shape"] = [4, 0, 0]


def fewer_experts(manifest: dict[str, Any]) -> None:
    manifest["groups"][0]["experts"].pop()


def bits(manifest: dict[str, Any]) -> None:
    group_with(manifest, "quantized")["codec"]["bits"] = 4


def drop_rate(manifest: dict[str, Any]) -> None:
    group_with(manifest, "sparse")["codec"]["drop_rate"] = 0.5


def rank(manifest: dict[str, Any]) -> None:
    group_with(manifest, "lowrank")["codec"]["rank"] = 1


def energy(manifest: dict[str, Any]) -> None:
    group_with(manifest, "lowrank")["codec"] = {"codec": "lowrank", "energy": 0.5}


def unknown_codec(manifest: dict[str, Any]) -> None:
    manifest["groups"][0]["codec"] = {"codec": "exec", "code": "import os"}


def unknown_parameter(manifest: dict[str, Any]) -> None:
    manifest["groups"][0]["codec"]["level"] = 3


def dtype(manifest: dict[str, Any]) -> None:
    manifest["groups"][0]["dtype"] = "F32"


def unknown_dtype(manifest: dict[str, Any]) -> None:
    manifest["groups"][0]["dtype"] = "F4"


def prefix(manifest: dict[str, Any]) -> None:
    manifest["groups"][0]["prefix"] = "model"


def projection(manifest: dict[str, Any]) -> None:
    manifest["groups"][0]["projection"] = "side"


def no_groups(manifest: dict[str, Any]) -> None:
    manifest["groups"] = []


def missing_key(manifest: dict[str, Any]) -> None:
    del manifest["groups"][0]["shape"]


def extra_key(manifest: dict[str, Any]) -> None:
    manifest["run"] = "me"


def unknown_tensor(manifest: dict[str, Any]) -> None:
    file, names = next(iter(manifest["source"]["files"].items()))
    manifest["source"]["files"] = {file: [*names, "another.weight"]}


def seed_of_words(manifest: dict[str, Any]) -> None:
    manifest["recipe"]["seed"] = "abc"


def recipe_without_name(manifest: dict[str, Any]) -> None:
    del manifest["recipe"]["name"]


def format_version(manifest: dict[str, Any]) -> None:
    manifest["format_version"] = FORMAT_VERSION + 1


def no_format_version(manifest: dict[str, Any]) -> None:
    del manifest["format_version"]


@pytest.mark.parametrize(
    ("tamper", "facts"),
    [
        (shape, ["layer 0, gate", "'base'"]),
        (negative_shape, ["layer 0, gate"]),
        (zero_shape, []),  # the group is one of several
        (fewer_experts, [MANIFEST, "contradicts itself"]),
        (bits, ["'codes'", "4-bit"]),
        (drop_rate, ["'values'"]),
        (rank, ["'left'"]),
        (energy, ["malformed"]),
        (unknown_codec, ["unknown codec 'exec'"]),
        (unknown_parameter, ["no parameter 'level'"]),
        (dtype, ["'base'"]),
        (unknown_dtype, ["malformed"]),
        (prefix, ["'base'"]),
        (projection, ["contradicts itself"]),
        (no_groups, ["lacks", ".weight'"]),
        (missing_key, [MANIFEST, "groups.0.shape"]),
        (extra_key, [MANIFEST, "run"]),
        (unknown_tensor, ["lacks", "'another.weight'"]),
        (seed_of_words, [MANIFEST, "recipe"]),
        (recipe_without_name, [MANIFEST, "recipe"]),
        (format_version, [f"version {FORMAT_VERSION + 1}", "install"]),
        (no_format_version, ["version"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_tampered_manifest(damaged: Path, tamper: Tamper, facts: list[str]) -> None:
    manifest = json.loads((damaged / MANIFEST).read_text())
    tamper(manifest)
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    refused(damaged, *facts)


@pytest.mark.parametrize(
    "name",
    [
        "../escape.safetensors",
        "/tmp/escape.safetensors",
        "sub/model.safetensors",
        "config.json",
        "tokenizer.json",
        "",
        "..",
    ],
)
def test_file_names_in_the_manifest_stay_inside(damaged: Path, tmp_path: Path, name: str) -> None:
    manifest = json.loads((damaged / MANIFEST).read_text())
    names = next(iter(manifest["source"]["files"].values()))
    manifest["source"]["files"] = {name: names}
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    refused(damaged, MANIFEST, repr(name))
    with pytest.raises(CheckpointError):
        synthesize(damaged, tmp_path / "back")
    assert [file.name for file in tmp_path.iterdir()] == ["damaged"]


def test_a_manifest_of_nothing(damaged: Path, tmp_path: Path) -> None:
    manifest = json.loads((damaged / MANIFEST).read_text())
    manifest["source"]["files"] = {}
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    with raises_saying(CheckpointError, "no tensors"):
        synthesize(damaged, tmp_path / "back")
    assert not (tmp_path / "back").exists()
