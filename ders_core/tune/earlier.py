"""Scores that were kept, if they are of the same files and of the codecs that are known now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Progress, quiet
from ders_core.errors import CheckpointError
from ders_core.files.checksum import file_checksum
from ders_core.pipeline.calibration import Calibration
from ders_core.tune.candidates import codecs_for
from ders_core.tune.saved import load_scores
from ders_core.tune.scores import Scores
from ders_core.tune.units import Unit, units_of


def earlier_scores(
    file: Path,
    checkpoint: Checkpoint,
    digest: str,
    calibration: Calibration,
    *,
    per_expert: bool = False,
) -> Scores | None:
    """The scores in a file; None if there are none, or they are of something else, or damaged:
    they are made again then. digest: SHA-256 of the calibration's file. Reads headers only."""
    if not file.is_file():
        return None
    try:
        scores = load_scores(file)
    except CheckpointError:  # of another version, or damaged
        return None
    units = units_of(checkpoint, per_expert=per_expert)
    same = (scores.identity, scores.calibration) == (checkpoint.identity, digest)
    if not same or [each.unit for each in scores.units] != units:
        return None
    weights = model_weights(units)
    names = set(calibration.others.names)
    for each in scores.units:
        tried = codecs_for(each.unit, weights, gradients=is_measured(each.unit, names))
        if not {candidate.codec for candidate in each.candidates} <= set(tried):
            return None
    return scores


def calibration_digest(file: Path, *, progress: Progress = quiet) -> str:
    """SHA-256 of a calibration, by which its scores are known; of a large one it takes seconds."""
    progress(0, 0, f"reading {file.name}")
    return file_checksum(file)


def model_weights(units: Sequence[Unit]) -> int:
    """Of the whole model."""
    return sum(unit.weights for unit in units if unit.part != "base")


def is_measured(unit: Unit, others: set[str]) -> bool:
    """Whether a calibration with gradients knows what errors of a unit cost. others: the tensors
    outside the experts that it measured."""
    return unit.part != "tensor" or unit.name in others
