"""Tensors besides the experts are bytes: every dtype of safetensors is carried."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.files.header import read_header
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import presets

CARRIED = {  # dtype -> shape and bytes of an element, as safetensors' own documentation has them
    "C64": ([3], 8.0),
    "F4": ([3, 4], 0.5),
    "F6_E2M3": ([8], 0.75),
    "F6_E3M2": ([4, 2], 0.75),
    "F8_E4M3": ([5], 1.0),
    "F8_E4M3FNUZ": ([5], 1.0),
    "F8_E5M2": ([2, 2], 1.0),
    "F8_E5M2FNUZ": ([3], 1.0),
    "F8_E8M0": ([4], 1.0),
    "U64": ([2], 8.0),
}


def as_read(file: Path) -> dict[str, dict[str, Any]]:
    """Dtype, shape and bytes of every tensor, by safetensors itself."""
    return dict(safetensors.deserialize(file.read_bytes()))


def append(file: Path, entries: dict[str, tuple[str, list[int], bytes]]) -> None:
    """Write more tensors at the end of a safetensors file."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for name, (dtype, shape, raw) in entries.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def odd(mixtral_dir: Path, tmp_path: Path) -> Path:
    directory = Path(shutil.copytree(mixtral_dir, tmp_path / "odd"))
    entries = {}
    for number, (dtype, (shape, size)) in enumerate(CARRIED.items()):
        count = 1
        for length in shape:
            count *= length
        raw = bytes((37 * number + 11 * place) % 251 for place in range(int(count * size)))
        entries[f"extra.{dtype}"] = (dtype, shape, raw)
    append(directory / "model.safetensors", entries)
    return directory


def test_every_dtype_comes_back(odd: Path, tmp_path: Path) -> None:
    before = as_read(odd / "model.safetensors")
    assert {f"extra.{dtype}" for dtype in CARRIED} < before.keys()
    assert open_checkpoint(odd).num_experts == 4
    compress(odd, tmp_path / "packed", presets()["quantized-2bit"])
    synthesize(tmp_path / "packed", tmp_path / "back")
    for place in ("packed", "back"):
        after = as_read(tmp_path / place / "model.safetensors")
        for dtype in CARRIED:
            assert after[f"extra.{dtype}"] == before[f"extra.{dtype}"]
    assert after.keys() == before.keys()


def test_narrow_elements_that_end_within_a_byte(mixtral_dir: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(mixtral_dir / "model.safetensors", tmp_path))
    append(file, {"bad": ("F6_E2M3", [3], b"abc")})
    with raises_saying(CheckpointError, file.name, "'bad'", "F6_E2M3 [3]"):
        read_header(file)
