"""What `verify` measures, against float64; and the damage that it finds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.messages import raises_saying

from ders_core.codecs import Sparse
from ders_core.errors import CheckpointError, CodecError
from ders_core.files.store import TensorStore
from ders_core.packed.names import MANIFEST
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import Verification, verify
from ders_core.recipe import Recipe, presets

Tensors = Callable[[Path], dict[str, torch.Tensor]]
Tamper = Callable[[dict[str, Any]], None]


def flip(directory: Path, name: str, where: float = 0.5, bit: int = 0) -> Path:
    """Flip one bit of a tensor on disk."""
    info = TensorStore.open(directory).tensors[name]
    data = bytearray(info.file.read_bytes())
    data[info.begin + int(where * (info.nbytes - 1))] ^= 1 << bit
    info.file.write_bytes(data)
    return info.file


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
            prefix = groups[group.key].prefix
            if f"{prefix}.base" in parts:
                base = parts[f"{prefix}.base"].double().numpy()
            else:  # coded without loss: the mean as it is stored; or none
                stored = group.read().float().mean(0).bfloat16().double().numpy()
                base = np.zeros_like(stored) if groups[group.key].without_base else stored
            against_delta = error / float(np.linalg.norm(original - base))
        else:
            against_delta = 0.0
        errors[group.key] = (against_delta, error / float(np.linalg.norm(original)))
    return errors


DIRECTORIES = ("mixtral_dir", "qwen2_moe_dir")


@pytest.mark.parametrize(
    ("preset", "directory"),
    [
        *((None, directory) for directory in DIRECTORIES),
        *zip(sorted(presets()), itertools.cycle(DIRECTORIES), strict=False),  # by turns
    ],
)
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
