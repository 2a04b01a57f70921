"""What a codec may know of a weight besides its delta."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.curvature import Curvature
from ders_core.later import torch


@dataclass(frozen=True)
class EncodeContext:
    """What a codec may know besides the delta.

    dtype: the checkpoint's storage dtype, in which values are kept.
    seed: of this expert's weight; the same at decoding.
    moments: E[x xᵀ] `[in, in]` of what the weight is multiplied with, or its diagonal `[in]`,
        float32; None without a calibration, and at decoding.
    curvature: what errors of this weight cost; None without a calibration that has gradients.
    removal: what removing the deltas of the whole model costs, in nats per token, as far as it is
        this weight's; None without gradients.
    groups: how many groups of the model are encoded, whose deltas shrink together.
    """

    dtype: torch.dtype
    seed: int
    moments: torch.Tensor | None = None
    curvature: Curvature | None = None
    removal: float | None = None
    groups: int = 1

    @property
    def importance(self) -> torch.Tensor | None:
        """What an error in column j weighs, `[in]`: its curvature, or E[x_j²]; None without a
        calibration."""
        if self.curvature is not None and self.curvature.total > 0:
            return self.curvature.columns
        if self.moments is None or self.moments.dim() == 1:
            return self.moments
        return self.moments.diagonal()
