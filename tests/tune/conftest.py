"""A tiny Mixtral with a calibration whose numbers are chosen, and its scores, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from support.gradient_calibrations import with_gradients

from ders_core.checkpoint import Checkpoint
from ders_core.packed.open import open_checkpoint
from ders_core.tune import Scores, score

UNMEASURED = "model.layers.0.self_attn.k_proj.weight"


@dataclass(frozen=True)
class Scored:
    checkpoint: Checkpoint
    calibration: Path
    directory: Path
    scores: Scores


@pytest.fixture(scope="session")
def scored(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """All matrices but one were measured. Errors of the whole size of a weight cost several
    nats."""
    checkpoint = open_checkpoint(mixtral_dir)
    place = tmp_path_factory.mktemp("tune")
    kinds = ("attention", "embedding", "head")
    others = [
        name
        for name, other in checkpoint.others.items()
        if other.kind in kinds and name != UNMEASURED
    ]
    file = place / "c.safetensors"
    with_gradients(checkpoint, file, cost=10.0, routers=True, others=others)
    scores = score(checkpoint, file, directory=place / "scores")
    return Scored(checkpoint, file, place / "scores", scores)
