"""What a codec holds in memory while it encodes, told beforehand: that decides how many experts
threads encode at once, and how many of a group are held meanwhile."""

from __future__ import annotations

import math
from typing import ClassVar

PIECES_BYTES = 10 << 20
"""Of pieces that fit into a processor's cache, and their like, while an expert is encoded; and of
parts that take their memory in large pages."""

WORKING_BYTES = 10
"""A weight, that most codecs hold at most while they encode."""


class NeededMemory:
    """Of a codec for one expert's weight `[out, in]`; what most codecs need."""

    use_of_calibration: ClassVar[str] = ""
    """What it does with second moments, such as "weighs entries by their inputs"; empty: it
    ignores them."""

    def working_bytes(self, shape: tuple[int, int]) -> int:
        """What encoding one expert `[out, in]` holds at most, its weight in 16 bits among it: that
        decides how many experts threads encode at once."""
        return WORKING_BYTES * math.prod(shape)

    def beside_bytes(self, shape: tuple[int, int]) -> int:
        """What encoding one expert `[out, in]` holds at most beside its weight and its base,
        without a calibration: that decides how many experts of a group are held meanwhile."""
        return self.working_bytes(shape) - 2 * math.prod(shape)

    def calibrated_bytes(self, shape: tuple[int, int], *, is_full: bool, makes_whole: bool) -> int:
        """The same with second moments of inputs, `[in, in]` if full, else diagonal: and Ŵ, which a
        codec that gives it back a few rows at a time holds only if it is made whole."""
        return self.working_bytes(shape)

    def shared_bytes(self, width: int) -> int:
        """Of full moments, for all experts together: a factor, and two matrices in float64."""
        return 20 * width**2 if self.use_of_calibration else 0
