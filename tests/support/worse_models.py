"""A text to measure on, and packed models that are visibly worse than their originals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ders_core.pipeline.compress import compress
from ders_core.recipe import presets

LOUDER = 32
"""A power of two: scaling by it rounds nothing."""


@dataclass(frozen=True)
class Pair:
    """A checkpoint, and itself with one bit per delta weight."""

    original: Path
    packed: Path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny_text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Pair]:
    """Makes a pair from a fixture's checkpoint, whose experts hardly matter as they are."""
    made: dict[Path, Pair] = {}

    def make(source: Path) -> Pair:
        if source not in made:
            place = tmp_path_factory.mktemp("pair")
            original = shutil.copytree(source, place / "original")
            tensors = load_file(original / "model.safetensors")
            for name, tensor in tensors.items():
                if name == "lm_head.weight" or ".experts." in name:
                    tensor *= LOUDER if name == "lm_head.weight" else 4
            save_file(tensors, original / "model.safetensors", metadata={"format": "pt"})
            compress(original, place / "packed", presets()["quantized-1bit"])
            made[source] = Pair(original, place / "packed")
        return made[source]

    return make


@pytest.fixture(scope="session")
def pair(pair_of: Callable[[Path], Pair], mixtral_dir: Path) -> Pair:
    return pair_of(mixtral_dir)
