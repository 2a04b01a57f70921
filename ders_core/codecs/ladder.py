"""What an automatic choice asks codecs for: their forms in several strengths, for one part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Part = Literal["deltas", "matrices"]
"""deltas: of experts, against a base. matrices: bases, tensors outside the experts, and experts
without a base."""

LEAST, MOST = -6.0, 2.0
"""Of knobs, as powers of 2 over the root of a model's weights: with one knob for all, KL is about a
twelfth of its square times the weights, until errors are as large as deltas."""


@dataclass(frozen=True)
class LadderContext:
    """part: what is coded. weights: how many the model has. gradients: whether it is known what
    errors cost."""

    part: Part
    weights: int
    gradients: bool = True

    def knobs(self, step: float) -> tuple[float, ...]:
        """From strong to weak, every `step` octaves; none without gradients."""
        if not self.gradients:
            return ()
        count = math.floor((MOST - LEAST) / step) + 1
        return tuple(
            float(f"{2 ** (MOST - step * number) / math.sqrt(self.weights):.6g}")
            for number in range(count)
        )
