"""What the pipeline's tests share: a recipe with every codec, and ways to look at directories."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ders_core.codecs import Keep, LowRank, Quantized, Sparse
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule

Snapshot = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="session")
def mix() -> Recipe:
    """Every codec once, over the two families' layers."""
    return Recipe(
        name="mix",
        seed=11,
        rules=(
            Rule(codec=Quantized(bits=3, group_size=32)),
            Rule(projections=("down",), codec=Sparse(drop_rate=0.8)),
            Rule(
                layers="0", projections=("gate",), codec=Sparse(drop_rate=0.9, method="magnitude")
            ),
            Rule(layers="0", projections=("up",), codec=LowRank(energy=0.7)),
            Rule(layers="0", projections=("down",), codec=Keep()),
        ),
    )


@pytest.fixture(scope="session")
def snapshot() -> Snapshot:
    """Relative name -> SHA-256 of every file below a directory."""

    def take(directory: Path) -> dict[str, str]:
        return {
            str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(directory.rglob("*"))
            if file.is_file()
        }

    return take


@pytest.fixture(scope="session")
def all_tensors() -> Callable[[Path], dict[str, torch.Tensor]]:
    """Every tensor of a directory, as safetensors reads them."""

    def load(directory: Path) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted(directory.glob("*.safetensors")):
            tensors |= load_file(file)
        return tensors

    return load


@pytest.fixture(scope="session")
def packed_dir(mixtral_dir: Path, mix: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mixtral_dir` packed by `mix`, in one go."""
    out = tmp_path_factory.mktemp("packed") / "mix"
    compress(mixtral_dir, out, mix)
    return out
