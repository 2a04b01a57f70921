"""How often each expert is chosen, by the current recipe's calibration; without torch."""

from __future__ import annotations

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.files.dtype import Dtype
from ders_core.later import np
from ders_core.pipeline.calibration import Calibration
from ders_core.recipe import Recipe
from ders_core.ui import session


def routing_shares(
    recipe: Recipe, source: Checkpoint, layer: int, experts: int
) -> tuple[float, ...] | None:
    """Each expert's share of the layer's choices; they sum to 1. None without a calibration of this
    checkpoint that may be read and knows the layer. experts: how many there are."""
    if recipe.calibration is None:
        return None
    try:
        calibration = Calibration.open(session.workspace().check_allowed(recipe.calibration))
        if calibration.checkpoint != source.identity:
            return None
        info = calibration.tensors.get(f"{layer}.routed")
        if info is None or info.dtype is not Dtype.I64 or info.shape != (experts,):
            return None
        counts = np.fromfile(info.file, "<i8", experts, offset=info.begin)
    except (DersError, OSError):
        return None
    total = int(counts.sum())
    if len(counts) < experts or total <= 0 or (counts < 0).any():  # damaged
        return None
    return tuple((counts / total).tolist())
