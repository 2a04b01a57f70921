"""Copies of a checkpoint that a test may change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ders_core.files.writer import write_json
from ders_core.packed.names import MANIFEST


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda source: Path(shutil.copytree(source, tmp_path / "copy"))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_manifest(packed: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((packed / MANIFEST).read_text())
    edit(manifest)
    write_json(packed / MANIFEST, manifest)


def edit_tensors(
    directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors) or tensors, path, {"format": "pt"})
