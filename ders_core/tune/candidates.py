"""The codecs that a unit can have: all forms in all strengths that the registry offers."""

from __future__ import annotations

from collections.abc import Iterator

from ders_core.codecs import CODECS, Codec
from ders_core.codecs.ladder import LadderContext
from ders_core.codecs.ladder import Part as CodecPart
from ders_core.tune.units import Unit

WHOLE = "keep"
"""The codec of a group that stays as it is: it has no base either."""


def codecs_for(unit: Unit, weights: int, *, gradients: bool) -> list[Codec]:
    """What is tried of a unit, each form's ladder together.

    weights: of the whole model. gradients: whether the calibration knows what errors of this unit
    cost; without, only what loses nothing is tried.
    """
    part: CodecPart = "deltas" if unit.part == "deltas" else "matrices"
    found = _ladders(LadderContext(part, weights, gradients))
    return [codec for codec in found if gradients or codec.lossless]


def _ladders(context: LadderContext) -> Iterator[Codec]:
    for codec_class in CODECS.values():
        yield from codec_class.ladder(context)
