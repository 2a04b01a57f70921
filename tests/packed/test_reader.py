"""Packed checkpoints: read against an independent synthesis; damage and tampering refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.messages import raises_saying

from ders_core.codecs import DeltaCodec, EncodeContext, Sparse
from ders_core.codecs.coding.prng import expert_seed
from ders_core.errors import CheckpointError, CodecError
from ders_core.files.spec import DTYPES
from ders_core.files.store import TensorStore
from ders_core.packed.manifest import MANIFEST
from ders_core.packed.open import is_packed, open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import Verification, verify
from ders_core.recipe import Recipe, presets

Tensors = Callable[[Path], dict[str, torch.Tensor]]
Tamper = Callable[[dict[str, Any]], None]


@pytest.fixture
def damaged(packed_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(packed_dir, tmp_path / "damaged"))


def flip(directory: Path, name: str, where: float = 0.5, bit: int = 0) -> Path:
    """Flip one bit of a tensor on disk."""
    info = TensorStore.open(directory).tensors[name]
    data = bytearray(info.file.read_bytes())
    data[info.begin + int(where * (info.nbytes - 1))] ^= 1 << bit
    info.file.write_bytes(data)
    return info.file


def test_is_packed(packed_dir: Path, mixtral_dir: Path, tmp_path: Path) -> None:
    assert is_packed(packed_dir)
    assert not is_packed(mixtral_dir)
    assert not is_packed(tmp_path)
    assert not is_packed(tmp_path / "nowhere")


def test_surface(packed_dir: Path, mixtral_dir: Path) -> None:
    packed, original = PackedCheckpoint(packed_dir), open_checkpoint(mixtral_dir)
    assert packed.config == original.config
    assert packed.original.names() == [n for names in original.store.files.values() for n in names]
    assert packed.manifest.source.identity == original.identity
    assert packed.bytes_total < original.bytes_total
    for name, info in original.tensors.items():
        assert packed.original.spec(name) == info.spec
        assert packed.original.read(name).dtype == info.dtype
    with raises_saying(CheckpointError, "tensor 'x'"):
        packed.original.read("x")


def test_read_is_base_plus_decoded_delta(packed_dir: Path, all_tensors: Tensors) -> None:
    """From the parts as safetensors reads them, with the sum in float64."""
    packed, raw = PackedCheckpoint(packed_dir), all_tensors(packed_dir)
    names = {codec.name for group in packed.manifest.groups for codec in group.group_codec().codecs}
    assert names == {"lowrank", "quantized", "sparse"}
    for group in packed.manifest.groups:
        codec, dtype = group.group_codec().codec, DTYPES[group.dtype]
        assert isinstance(codec, DeltaCodec)
        shape = (group.shape[1], group.shape[2])
        for expert, source in enumerate(group.experts):
            context = EncodeContext(dtype, expert_seed(11, group.layer, group.projection, expert))
            parts = {}
            for part in codec.parts(shape, dtype):
                whole = raw[f"{group.prefix}.{part}"]
                if part in group.lengths:  # laid end to end
                    parts[part] = whole.split(list(group.lengths[part]))[expert]
                else:
                    parts[part] = whole[expert]
            delta = codec.decode(parts, shape, context)
            expected = (raw[f"{group.prefix}.base"].double() + delta.double()).to(dtype)
            got = packed.original.read(source.tensor)
            # float32 addition may round once before the rounding to bfloat16
            np.testing.assert_allclose(got.double(), expected.double(), rtol=2**-7, atol=1e-6)
            assert float((got != expected).float().mean()) < 1e-3


def test_verify_says_all_is_well(packed_dir: Path) -> None:
    verification = verify(packed_dir)
    assert verification.ok
    assert verification.problems == ()
    assert verification.tensors == len(TensorStore.open(packed_dir).tensors)


def independent_errors(
    source: Path, packed: Path, back: Path, tensors: Tensors
) -> dict[tuple[int, str], tuple[float, float]]:
    """‖Ŵ−W‖/‖Δ‖ and ‖Ŵ−W‖/‖W‖ in float64, from files alone."""
    synthesize(packed, back)
    before, after, parts = tensors(source), tensors(back), tensors(packed)
    groups = {(g.layer, g.projection): g for g in PackedCheckpoint(packed).manifest.groups}
    errors = {}
    for group in open_checkpoint(source).groups():
        original = np.stack([before[name].double().numpy() for name in group.sources])
        synthesized = np.stack([after[name].double().numpy() for name in group.sources])
        error = float(np.linalg.norm(synthesized - original))
        if group.key in groups:
            base = parts[f"{groups[group.key].prefix}.base"].double().numpy()
            against_delta = error / float(np.linalg.norm(original - base))
        else:
            against_delta = 0.0
        errors[group.key] = (against_delta, error / float(np.linalg.norm(original)))
    return errors


@pytest.mark.parametrize("preset", [None, *sorted(presets())])
@pytest.mark.parametrize("directory", ["mixtral_dir", "qwen2_moe_dir"])
def test_reported_and_verified_errors_are_those_of_float64(
    preset: str | None,
    directory: str,
    mix: Recipe,
    tmp_path: Path,
    all_tensors: Tensors,
    request: pytest.FixtureRequest,
) -> None:
    source: Path = request.getfixturevalue(directory)
    report = compress(source, tmp_path / "packed", presets()[preset] if preset else mix)
    expected = independent_errors(source, tmp_path / "packed", tmp_path / "back", all_tensors)
    verified = verify(tmp_path / "packed", source)
    assert verified.ok
    for entries in (report.entries, verified.groups):
        assert [(e.layer, e.projection) for e in entries] == list(expected)
        for entry in entries:
            against_delta, against_weight = expected[entry.layer, entry.projection]
            assert entry.rel_error_delta == pytest.approx(against_delta, rel=1e-5)
            assert entry.rel_error_weight == pytest.approx(against_weight, rel=1e-5)


def test_verify_against_another_model(
    packed_dir: Path, scratch_dir: Path, qwen2_moe_dir: Path
) -> None:
    verification = verify(packed_dir, scratch_dir)
    assert not verification.ok
    assert "another checkpoint" in verification.problems[0]
    with raises_saying(CheckpointError, "different models"):
        verify(packed_dir, qwen2_moe_dir)


def test_verification_as_json(packed_dir: Path, mixtral_dir: Path) -> None:
    values = json.loads(json.dumps(verify(packed_dir, mixtral_dir).to_dict()))
    assert values["ok"] is True
    assert len(values["groups"]) == 6
    assert set(values["groups"][0]) == {
        "layer",
        "projection",
        "rel_error_delta",
        "rel_error_weight",
        "gain",
        "noise",
    }


def test_every_flipped_bit_is_found_and_named(damaged: Path) -> None:
    """One bit in each tensor, one tensor at a time."""
    names = list(TensorStore.open(damaged).tensors)
    for number, name in enumerate(names):
        where, bit = (number % 11) / 10, number % 8
        file = flip(damaged, name, where, bit)
        verification = verify(damaged)
        assert not verification.ok
        (problem,) = verification.problems
        assert repr(name) in problem
        assert file.name in problem
        flip(damaged, name, where, bit)
    assert verify(damaged).ok


def test_a_damaged_checkpoint_is_not_synthesized(damaged: Path, tmp_path: Path) -> None:
    name = PackedCheckpoint(damaged).manifest.groups[1].prefix + ".base"
    flip(damaged, name)
    with raises_saying(CheckpointError, repr(name)):
        synthesize(damaged, tmp_path / "back")
    assert [file.name for file in tmp_path.iterdir()] == ["damaged"]


def test_damaged_positions_are_an_error_and_no_crash(damaged: Path) -> None:
    packed = PackedCheckpoint(damaged)
    group = next(
        group
        for group in packed.manifest.groups
        if isinstance(codec := group.group_codec().codec, Sparse) and codec.method == "magnitude"
    )
    positions = f"{group.prefix}.positions"
    info = packed.store.tensors[positions]
    half = info.nbytes // group.shape[0]
    for fill in (0x00, 0xFF):
        data = bytearray(info.file.read_bytes())
        data[info.begin : info.begin + half] = bytes([fill]) * half
        info.file.write_bytes(data)
        with raises_saying(CodecError, "positions", "damaged"):
            PackedCheckpoint(damaged).original.read(group.experts[0].tensor)


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
    manifest["format_version"] = 4


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
        (format_version, ["version 4", "install"]),
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


def problems_after(damaged: Path, change: Tamper) -> Verification:
    manifest = json.loads((damaged / MANIFEST).read_text())
    change(manifest["checksums"])
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    return verify(damaged)


def test_checksums_must_cover_the_tensors_exactly(damaged: Path) -> None:
    missing = problems_after(damaged, lambda sums: sums.pop("lm_head.weight"))
    assert ["'lm_head.weight'" in problem for problem in missing.problems] == [True]
    surplus = problems_after(damaged, lambda sums: sums.update({"ghost": "00"}))
    assert len(surplus.problems) == 2
    assert any("'ghost'" in problem for problem in surplus.problems)
