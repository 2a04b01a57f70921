"""What encoding a group holds beside the weights of its experts and their base."""

from __future__ import annotations

from ders_core.checkpoint import ExpertGroup
from ders_core.codecs.group import GroupCodec
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.judge import OUTPUT_ROWS, judges_some_rows
from ders_core.recipe import Recipe


def needed_beside(group: ExpertGroup, recipe: Recipe, codec: GroupCodec) -> tuple[int, int]:
    """(bytes for each expert that is encoded, bytes for all of them together), at most. Raises
    CheckpointError if the recipe's calibration cannot be read."""
    _, out, width = group.shape
    if not recipe.calibration:
        return codec.beside_bytes((out, width)), 0
    calibration = Calibration.open(recipe.calibration)
    is_full = calibration.is_full(*group.key)
    makes_whole = calibration.has_gradients or not judges_some_rows(out, is_full=is_full)
    beside = codec.calibrated_bytes((out, width), is_full=is_full, makes_whole=makes_whole)
    if not is_full:
        return beside, 0
    beside += 0 if makes_whole else OUTPUT_ROWS * width * group.dtype.itemsize
    # moments as measured; those that codecs go by; and each expert's own, of which each thread
    # has one factor; threads make them one after another
    moments = 1 + calibration.has_weighted + calibration.has_each * group.shape[0]
    factor = codec.shared_bytes(width)
    known = moments * 4 * width**2 + (2 * 4 * width**2 if calibration.has_gradients else 0)
    return beside + (factor if calibration.has_each else 0), known + factor
