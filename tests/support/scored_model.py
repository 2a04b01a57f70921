"""A checkpoint with a calibration and its scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ders_core.checkpoint import Checkpoint
from ders_core.tune.scores import Scores

UNMEASURED = "model.layers.0.self_attn.k_proj.weight"
"""The one matrix outside the experts that the calibration does not know."""


@dataclass(frozen=True)
class Scored:
    """directory: where the scores are kept."""

    checkpoint: Checkpoint
    calibration: Path
    directory: Path
    scores: Scores
