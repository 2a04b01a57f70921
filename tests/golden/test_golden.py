"""Packed checkpoints of released format versions must read the same for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.make import KEPT, SEARCHED_AGAIN, form
from safetensors.torch import load_file

from ders_core.codecs import CODECS
from ders_core.packed.manifest import FORMAT_VERSION
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify

HERE = Path(__file__).parent
HASHES: dict[str, dict[str, str]] = json.loads((HERE / "hashes.json").read_text())
READ_ONLY = {"v2-entropy", "v2-lossless", *SEARCHED_AGAIN}
"""Streams of versions before 4, and scales of an earlier search, which are no longer written."""

BY_BLAS = {"v2-lowrank-quantized", "v2-chain"}
"""An SVD's last bits are the machine's own."""


IN_ANOTHER_ORDER = {
    "v2-sparse-magnitude",
    "v2-sparse-magnitude-bitmap",
    "v4-entropy",
    "v4-lossless",
}
"""Made when tensors whose lengths depend on the data were not appended yet. v5-experts and v5-plain
have the order of today."""


def contents(file: Path) -> dict[str, Any]:
    """dtype, shape and bytes of each tensor of a safetensors file, and its metadata."""
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header: dict[str, Any] = json.loads(file.read_bytes()[8 : 8 + length])
    values = file.read_bytes()[8 + length :]
    for entry in header.values():
        if "data_offsets" in entry:
            begin, end = entry.pop("data_offsets")
            entry["values"] = values[begin:end]
    return header


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def test_every_codec_has_one() -> None:
    directories = {path.parent.name for path in HERE.glob("*/ders_manifest.json")}
    assert directories == set(HASHES)
    used = {
        codec.name
        for name in HASHES
        for group in PackedCheckpoint(HERE / name).manifest.groups
        for codec in group.group_codec().codecs
    }
    assert used == set(CODECS)


def test_every_form_has_one() -> None:
    """Fused tensors with biases and several bases; codes with a shared expert."""
    groups = PackedCheckpoint(HERE / "v1-fused").manifest.groups
    assert {group.bases for group in groups} == {(0, 1, 0, 1), None}  # `keep` has none
    assert all(len(group.biases) == 4 for group in groups)
    assert {group.experts[1].axes for group in groups} == {"expert in (out part)", "expert in out"}
    groups = PackedCheckpoint(HERE / "v1-fp8").manifest.groups
    assert {(group.stored, group.shape[0]) for group in groups} == {("fp8", 3)}
    groups = PackedCheckpoint(HERE / "v2-experts").manifest.groups
    assert {group.uses for group in groups} == {(0, 1)}


def test_what_a_version_knows_of_the_original() -> None:
    """From version 3 on, the weights that every group was encoded from, and its error."""
    for name in HASHES:
        manifest = PackedCheckpoint(HERE / name).manifest
        known = (
            {stack.prefix for stack in manifest.stacks} if manifest.format_version > 2 else set()
        )
        assert manifest.encoded.keys() == known


def first_bytes(name: str, part: str) -> set[int]:
    """What parts of varying length begin with, over all experts: it tells their form."""
    tensors = load_file(HERE / name / "model.safetensors")
    firsts = set()
    for group in PackedCheckpoint(HERE / name).manifest.groups:
        rows = tensors[f"{group.prefix}.{part}"].split(group.lengths[part])
        firsts |= {int(row[0]) for row in rows}
    return firsts


def test_every_form_of_a_stream_has_one() -> None:
    """Positions in Rice code and as a bitmap; what is lossless coded, and raw."""
    assert 0 not in first_bytes("v2-sparse-magnitude", "positions")
    assert first_bytes("v2-sparse-magnitude-bitmap", "positions") == {0}
    assert first_bytes("v2-lossless", "stream") == {1}
    assert first_bytes("v4-lossless", "stream") == {2}
    assert first_bytes("v4-entropy", "stream") == {255}
    assert first_bytes("v2-experts", "1.stream") == {0}


@pytest.mark.parametrize("name", sorted(HASHES))
def test_golden(name: str, tmp_path: Path) -> None:
    assert verify(HERE / name).ok
    synthesize(HERE / name, tmp_path / "back")
    tensors = load_file(tmp_path / "back" / "model.safetensors")
    assert {key: digest(tensor) for key, tensor in tensors.items()} == HASHES[name]
    packed = PackedCheckpoint(HERE / name)
    assert {key: digest(packed.original.read(key)) for key in packed.original.names()} == HASHES[
        name
    ]


@pytest.mark.parametrize(
    "name",
    sorted(name for name in HASHES.keys() - BY_BLAS - READ_ONLY if not name.startswith("v1-")),
)
def test_compress_still_writes_it(name: str, tmp_path: Path) -> None:
    make, recipe = form(name)
    synthesize(HERE / KEPT[make], tmp_path / "original")
    compress(tmp_path / "original", tmp_path / "packed", recipe)
    written, golden = (place / "model.safetensors" for place in (tmp_path / "packed", HERE / name))
    if name in IN_ANOTHER_ORDER:
        assert contents(written) == contents(golden)
    else:
        assert written.read_bytes() == golden.read_bytes()
    manifest, wanted = (
        PackedCheckpoint(place).manifest for place in (tmp_path / "packed", HERE / name)
    )
    assert (manifest.groups, manifest.others) == (wanted.groups, wanted.others)
    if wanted.format_version == FORMAT_VERSION:
        assert manifest == wanted
    assert verify(tmp_path / "packed", tmp_path / "original").ok


def test_they_are_small() -> None:
    files = [file for file in HERE.rglob("*") if "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 500_000
