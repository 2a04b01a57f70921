"""Whether a group's experts share enough for a base, where the recipe leaves that open."""

from __future__ import annotations

import math

from ders_core.codecs.group import BaseForm
from ders_core.decompose.distortion import Squares
from ders_core.files.dtype import Dtype

LEAST = 0.25
"""Bits a weight that a base must spare, or as many as it takes itself, if that is less."""


def bits_to_spare(shape: tuple[int, int, int], form: BaseForm, dtype: Dtype) -> float:
    """The bits a weight that a base must spare a group of `shape` (experts, out, in), to be kept.

    Any mean of K experts spares ½ log2(K/(K−1)), also of unrelated ones; what counts is what comes
    beyond.
    """
    experts, out, width = shape
    if experts < 2:
        return 0.0
    taken = 8 * sum(spec.nbytes for spec in form.specs((out, width), dtype).values())
    by_chance = math.log2(experts / (experts - 1)) / 2
    return by_chance + min(LEAST, taken / (experts * out * width))


def is_doubtful(squares: Squares, least: float) -> bool:
    """Whether deltas are so large that a base may not pay, so that going without is tried.

    squares: against that base. At equal error a Gaussian delta takes ½ log2(ΣW²/ΣΔ²) bits less than
    the weight itself.
    """
    return squares.delta > 0 and squares.weight <= squares.delta * math.pow(4, least)


def pays(loss: float, without: float, least: float) -> bool:
    """Whether a base spares so many bits. loss, without: errors, as norms, of the same codec with
    it and without; each bit halves an error."""
    return without > loss * math.pow(2, least)
