"""Whether the files that a recipe names can be used for a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Advance, uncounted
from ders_core.errors import CheckpointError
from ders_core.recipe import Recipe

if TYPE_CHECKING:
    from ders_core.pipeline.calibration import Calibration


def check_files(recipe: Recipe, checkpoint: Checkpoint, step: Advance = uncounted) -> None:
    """Raise CheckpointError unless a recipe's other files can be used for the checkpoint: what its
    base reads, and its calibration. Reads headers only, unless `Calibration.check` reads more."""
    recipe.base.check_files()
    if recipe.calibration is None:
        return
    from ders_core.pipeline.calibration import Calibration  # most recipes need none

    calibration = Calibration.open(recipe.calibration)
    calibration.check(checkpoint, step)
    if recipe.needs_of_calibration == "gradients" and not calibration.has_gradients:
        raise CheckpointError(
            f"{calibration.path} has no gradients, which a knob needs; run ders calibrate "
            "--gradients"
        )
    if recipe.others:
        _check_measured(recipe, checkpoint, calibration)


def _check_measured(recipe: Recipe, checkpoint: Checkpoint, calibration: Calibration) -> None:
    """Raise CheckpointError unless gradients were measured of every tensor that a knob is for."""
    measured = set(calibration.others.names)
    for other in checkpoint.others.values():
        codec = recipe.codec_of_tensor(other)
        if codec.needs_of_calibration == "gradients" and other.name not in measured:
            why = calibration.others.notes.left_out.get(other.name)
            told = f" ({why})" if why else ""
            raise CheckpointError(
                f"{calibration.path} does not know what errors of {other.name!r} cost{told}, which "
                "a knob needs; run ders calibrate --others, or leave the tensor as it is (codec: "
                "keep)"
            )
