"""Two packed checkpoints on the same bases, between which patches travel."""

from __future__ import annotations

from pathlib import Path

import pytest

from ders_core.codecs import LowRank, Quantized, Sparse
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule

FOUR = Recipe(name="four", rules=(Rule(codec=Quantized(bits=4)),))
MIXED = Recipe(
    name="mixed",
    seed=3,
    rules=(
        Rule(codec=Sparse(drop_rate=0.9)),
        Rule(codec=LowRank(rank=2), projections=("down",)),
        Rule(codec=Quantized(bits=2), layers="1", projections=("up",)),
    ),
)


def files(directory: Path) -> dict[str, bytes]:
    """Everything below a directory but the way back and the model card of a patch."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "ders_rollback" not in path.parts
    }


@pytest.fixture(scope="session")
def packed(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("patch")
    compress(mixtral_dir, place / "mixed", MIXED)
    return place / "mixed"


@pytest.fixture(scope="session")
def other(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run of the same checkpoint: the same bases, other deltas."""
    place = tmp_path_factory.mktemp("other")
    compress(mixtral_dir, place / "four", FOUR)
    return place / "four"
